"""Prefect's own calls, made by the function of a job: each leaves something on the server that a test can find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect import get_client, runtime
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact
from prefect.blocks.abstract import JobBlock, JobRun
from prefect.blocks.system import Secret
from prefect.concurrency.asyncio import concurrency as async_concurrency
from prefect.concurrency.sync import concurrency
from prefect.context import get_run_context
from prefect.deployments import run_deployment
from prefect.events import emit_event
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import receive_input, send_input
from prefect.utilities.asyncutils import sync_compatible
from prefect.variables import Variable
from pydantic import VERSION

from tests.waiting import PATIENCE

WAITS: dict[str, Any] = {"timeout": PATIENCE, "poll_interval": 0.1, "raise_timeout_error": True}


class Triggered(JobRun[str]):
    """What `Notes.trigger` returns."""

    @sync_compatible
    async def wait_for_completion(self) -> None:
        """Return at once."""

    @sync_compatible
    async def fetch_result(self) -> str:
        """Return the version of pydantic, which a block's process certainly has."""
        return VERSION


class Notes(JobBlock[str]):
    """A block whose trigger works by Prefect's older rule for functions that are sync or async."""

    _block_type_name = "Test notes"
    name: str

    @sync_compatible
    async def trigger(self) -> Triggered:
        """Set a variable."""
        await Variable.aset(f"{self.name}_triggered", "yes", overwrite=True)
        return Triggered()


def use_everything(case: str, deployment: str, pauses: bool) -> dict[str, Any]:
    """Make every call, all named after `case`, and return what they returned."""
    context = get_run_context()
    Variable.set(case, "1", overwrite=True)
    Secret(value=f"secret of {case}").save(case.replace("_", "-"), overwrite=True)
    key = case.replace("_", "-")
    create_markdown_artifact("text", key=key)
    create_table_artifact([{"a": 1}], key=f"{key}-table")
    create_link_artifact("http://example.org", key=f"{key}-link")
    flow_run = run_deployment(deployment, timeout=0, flow_run_name=case)
    send_input(case, flow_run_id=runtime.flow_run.id, key_prefix=key)
    received = receive_input(str, **WAITS, key_prefix=key).next()
    run = Notes(name=case).trigger()
    run.wait_for_completion()
    with get_client(sync_client=True) as client, concurrency("everything", occupy=1):
        known = client.read_flow_run(context.task_run.flow_run_id).name
    emit_event(f"test.{case}", resource={"prefect.resource.id": f"test.{case}"})
    if pauses:
        pause_flow_run(timeout=int(PATIENCE), poll_interval=0.1)
    try:
        suspended = suspend_flow_run()
    except RuntimeError as error:
        suspended = str(error)
    return {
        "variable": Variable.get(case),
        "secret": Secret.load("everything").get(),
        "flow run": str(flow_run.id),
        "input": received,
        "block": run.fetch_result(),
        "name": known,
        "client": context.client.read_flow_run(context.task_run.flow_run_id).name,
        "suspended": suspended,
        "task run": str(context.task_run.id),
    }


async def use_everything_async(case: str, deployment: str, pauses: bool) -> dict[str, Any]:
    """Do the same as `use_everything`, in a coroutine."""
    context = get_run_context()
    await Variable.set(case, "1", overwrite=True)
    await Secret(value=f"secret of {case}").save(case.replace("_", "-"), overwrite=True)
    key = case.replace("_", "-")
    await create_markdown_artifact("text", key=key)
    await create_table_artifact([{"a": 1}], key=f"{key}-table")
    await create_link_artifact("http://example.org", key=f"{key}-link")
    flow_run = await run_deployment(deployment, timeout=0, flow_run_name=case)
    await send_input(case, flow_run_id=runtime.flow_run.id, key_prefix=key)
    received = await receive_input(str, **WAITS, key_prefix=key).next()
    run = await Notes(name=case).trigger()
    await run.wait_for_completion()
    async with get_client() as client, async_concurrency("everything", occupy=1):
        known = (await client.read_flow_run(context.task_run.flow_run_id)).name
    emit_event(f"test.{case}", resource={"prefect.resource.id": f"test.{case}"})
    if pauses:
        await pause_flow_run(timeout=int(PATIENCE), poll_interval=0.1)
    try:
        suspended = await suspend_flow_run()
    except RuntimeError as error:
        suspended = str(error)
    async with get_client() as client:
        again = (await client.read_flow_run(context.task_run.flow_run_id)).name
    return {
        "variable": await Variable.get(case),
        "secret": (await Secret.load("everything")).get(),
        "flow run": str(flow_run.id),
        "input": received,
        "block": await run.fetch_result(),
        "name": known,
        "client": again,
        "suspended": suspended,
        "task run": str(context.task_run.id),
    }


FUNCTIONS: dict[str, Callable[..., Any]] = {"sync": use_everything, "async": use_everything_async}
