"""The end of an async flow: it waits until the server has recorded its tasks, and other coroutines go on meanwhile."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.context import AsyncClientContext

from executor_adapter.prefect import JobTaskRunner, MirrorReport, job_task
from executor_adapter.prefect.mirror import runs
from executor_adapter.prefect.mirror.mirror import TaskRunMirror
from executor_adapter.prefect.mirror.server import ServerApi
from executor_adapter.prefect.runners.engine_threads import EngineThreads, await_at_flow_end
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE

pytestmark = pytest.mark.usefixtures("prefect_api", "executor")


@job_task(pool="thread", retry_attempts=0)
def one() -> int:
    return 1


class SlowServer:
    """A server that answers no request with states until it is told to, or for a minute."""

    def __init__(self) -> None:
        self.is_back = threading.Event()
        self.was_told = True

    def wait(self) -> None:
        self.was_told = self.is_back.wait(PATIENCE) and self.was_told


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SlowServer:
    """The server, slow."""
    slow, send = SlowServer(), ServerApi.send
    monkeypatch.setattr(runs, "FLOW_END_STALL_TIMEOUT", 120.0)

    def send_later(self: ServerApi, bodies: Sequence[bytes]) -> None:
        slow.wait()
        send(self, bodies)

    monkeypatch.setattr(ServerApi, "send", send_later)
    return slow


@pytest.mark.parametrize("runner", [None, JobTaskRunner(max_workers=2)], ids=["Prefect's runner", "JobTaskRunner"])
def test_an_async_flow_does_not_block_its_event_loop(
    api: Api, server: SlowServer, monkeypatch: pytest.MonkeyPatch, runner: Any
) -> None:
    """A coroutine beside the flow runs while the flow waits for the server, and the flow ends when all is recorded."""
    steps: list[str] = []
    runner_is_left = threading.Event()
    join = EngineThreads.join

    def join_and_tell(self: EngineThreads, **options: Any) -> None:
        join(self, **options)
        runner_is_left.set()

    monkeypatch.setattr(EngineThreads, "join", join_and_tell)

    async def main() -> UUID:
        over = asyncio.Event()

        @flow(task_runner=runner)
        async def run() -> UUID:
            future = one.submit()
            future.wait()
            over.set()
            return future.task_run_id

        async def beside() -> None:
            await over.wait()
            while not runner_is_left.is_set():
                await asyncio.sleep(0.01)
            steps.append("beside")
            server.is_back.set()

        other = asyncio.create_task(beside())
        task_run_id = await run()
        steps.append("flow")
        other.cancel()
        return task_run_id

    task_run_id = asyncio.run(main())
    assert (steps, server.was_told) == (["beside", "flow"], True)
    assert api.state_names(task_run_id) == ["Pending", "Running", "Completed"]


def test_an_async_flow_that_is_cancelled_while_it_waits_ends_soon(
    server: SlowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelling an async flow that waits for the server ends it; states that are not recorded are kept."""
    reports: list[MirrorReport] = []
    close = TaskRunMirror.close

    def close_and_tell(self: TaskRunMirror, timeout: float | None = None) -> MirrorReport:
        reports.append(close(self, timeout))
        return reports[-1]

    monkeypatch.setattr(TaskRunMirror, "close", close_and_tell)

    @flow
    async def run() -> None:
        one.submit().wait()

    async def main() -> None:
        running = asyncio.create_task(run())
        while not any(thread.name.startswith("flow-end") for thread in threading.enumerate()):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    assert not server.is_back.is_set()
    assert len(reports[0].kept) == 1
    server.is_back.set()


def test_a_flow_can_have_more_subflows_than_calls_can_nest() -> None:
    """An async flow that had thousands of subflows, whose ends its client awaits too, ends."""
    subflows = sys.getrecursionlimit() + 100

    async def main() -> int:
        waits: list[None] = []
        async with AsyncClientContext.get_or_create():
            for _ in range(subflows):
                assert await_at_flow_end(lambda: waits.append(None), lambda: None)
        return len(waits)

    assert asyncio.run(main()) == subflows
