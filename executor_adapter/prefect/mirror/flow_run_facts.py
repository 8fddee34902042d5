"""Reads the facts of a flow run that every event of its task runs contains."""

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
from executor_adapter.job import ErrorCode
from executor_adapter.prefect.mirror.state_events import FlowRunFacts, related_resource

logger = logging.getLogger("executor_adapter.prefect")

PERMANENT_ERROR_CODES = frozenset({ErrorCode.REQUEST_ERROR, ErrorCode.CONFIGURATION_ERROR})
"""Error codes of answers that a repeated request would get again."""


def current_flow_run_id() -> UUID | None:
    """Return the id of the flow run around the caller."""
    context = FlowRunContext.get()
    return context.flow_run.id if context is not None and context.flow_run is not None else None


def flow_run_facts() -> FlowRunFacts:
    """Return what is known of the flow run around the caller without a request to the server."""
    tags = json.dumps(sorted(TagsContext.get().current_tags))
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return FlowRunFacts(tags=tags)
    run = context.flow_run
    return FlowRunFacts(related=related_resource("flow-run", run.id, run.name), tags=tags, run_count=run.run_count)


def read_flow_run_facts(facts: FlowRunFacts) -> FlowRunFacts:
    """Return the facts with all resources that the flow run is related to, such as its deployment.

    It asks the server, in an event loop of its own. Where a resource was deleted, or may not be read, the facts are
    returned as they are.

    Raises:
        httpx.HTTPError: the server cannot be reached.
    """
    if not facts.related:
        return facts
    try:
        found = asyncio.run(_related())
    except (ObjectNotFound, httpx.HTTPStatusError) as error:
        if isinstance(error, httpx.HTTPStatusError) and error_code_of(error) not in PERMANENT_ERROR_CODES:
            raise
        logger.info("cannot read the resources of the flow run; its task runs are related to it alone: %s", error)
        return facts
    related = [resource for resource in found if resource["prefect.resource.role"] != "task-run"]
    return facts._replace(related=",".join(map(json.dumps, related)))


async def _related() -> list[dict[str, str]]:
    async with get_client() as client:
        return [dict(resource.root) for resource in await related_resources_from_run_context(client)]
