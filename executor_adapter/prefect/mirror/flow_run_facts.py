"""What is said of a flow run in every event of its task runs."""

from __future__ import annotations

import asyncio
import json
import logging
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TagsContext
from prefect.events.related import related_resources_from_run_context
from prefect.exceptions import ObjectNotFound

from executor_adapter.error_codes import error_code_of
from executor_adapter.job.status import ErrorCode
from executor_adapter.prefect.mirror.state_events import FlowRunFacts, resource

logger = logging.getLogger("executor_adapter.prefect")

FINAL_REFUSALS = frozenset({ErrorCode.REQUEST_ERROR, ErrorCode.CONFIGURATION_ERROR})
"""What answers are that would be given again."""


def current_flow_run_id() -> UUID | None:
    """The id of the flow run around the caller."""
    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None


def flow_run_facts() -> FlowRunFacts:
    """What is known of the flow run around the caller without asking its server."""
    tags = json.dumps(sorted(TagsContext.get().current_tags))
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return FlowRunFacts(tags=tags)
    run = context.flow_run
    return FlowRunFacts(related=resource("flow-run", run.id, run.name), tags=tags, run_count=run.run_count)


def read_flow_run_facts(facts: FlowRunFacts) -> FlowRunFacts:
    """The facts with all that the flow run belongs to; it asks the server, in an event loop of its own.

    As they are, where some of that was deleted, or may not be read.

    Raises:
        httpx.HTTPError: the server is away.
    """
    if not facts.related:
        return facts
    try:
        found = asyncio.run(_related())
    except (ObjectNotFound, httpx.HTTPStatusError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error_code_of(error) not in FINAL_REFUSALS:
            raise
        logger.info("not all that the flow run belongs to can be read, and its task runs are of it alone: %s", error)
        return facts
    related = [about for about in found if about["prefect.resource.role"] != "task-run"]
    return facts._replace(related=",".join(json.dumps(about) for about in related))


async def _related() -> list[dict[str, str]]:
    async with get_client() as client:
        return [dict(about.root) for about in await related_resources_from_run_context(client)]
