"""What is said of a flow run in every event of its task runs."""

from __future__ import annotations

import asyncio
import json
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TagsContext
from prefect.events.related import related_resources_from_run_context

from executor_adapter.prefect.state_events import FlowRunFacts, resource


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

    Raises:
        httpx.HTTPError: the server is away.
    """
    if not facts.related:
        return facts
    related = [about for about in asyncio.run(_related()) if about["prefect.resource.role"] != "task-run"]
    return facts._replace(related=",".join(json.dumps(about) for about in related))


async def _related() -> list[dict[str, str]]:
    async with get_client() as client:
        return [dict(about.root) for about in await related_resources_from_run_context(client)]
