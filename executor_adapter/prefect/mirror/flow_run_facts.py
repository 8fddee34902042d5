"""Reads the facts of a flow run that every event of its task runs contains, and announces it to the sentinel."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
from uuid import UUID

import httpx
import prefect.context
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TagsContext
from prefect.events.related import related_resources_from_run_context
from prefect.exceptions import ObjectNotFound
from prefect.settings import Settings, get_current_settings

from executor_adapter.error_codes import error_code_of
from executor_adapter.executor import sentinel_client
from executor_adapter.job import ErrorCode
from executor_adapter.prefect.child.contexts import NoTaskRunner
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
    related = related_resource("flow-run", run.id, run.name)
    return FlowRunFacts(str(run.id), related=related, tags=tags, run_count=run.run_count)


def announce_flow_run() -> None:
    """Tell the sentinel which flow run is around the caller, so that it ends if this process is killed.

    Only the process that runs the flow announces it: another one that the context was sent to may end before the flow.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or context.detached or isinstance(context.task_runner, NoTaskRunner):
        return
    # A child of multiprocessing, as of Prefect's ProcessPoolTaskRunner, calls no exit handlers.
    if multiprocessing.parent_process() is None and not get_current_settings().testing.test_mode:
        sentinel_client.announce(str(context.flow_run.id), context.flow_run.run_count, _settings_of_context())


_inherited: list[Settings] = []
"""The settings of this process when it announced its first flow run: the sentinel has inherited them."""


def _settings_of_context() -> dict[str, str]:
    """Return the environment variables that give the reporter the server that is in force here.

    None where the environment that the sentinel has inherited, and the profile, do that: unless the program changed its
    settings, with `temporary_settings` or for the whole process.
    """
    if not _inherited:
        _inherited.append(prefect.context.GLOBAL_SETTINGS_CONTEXT.settings)
    ours, inherited = get_current_settings(), _inherited[0]
    if ours is inherited or all(
        getattr(ours, section) == getattr(inherited, section) for section in ("api", "home", "server", "client")
    ):
        return {}
    return ours.to_environment_variables(exclude_unset=True)


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
