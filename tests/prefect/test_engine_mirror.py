"""The mirror of task runs that Prefect's engines drive: an unreachable server, other runners, a process's end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, tags, task
from prefect.task_runners import PrefectTaskRunner, ProcessPoolTaskRunner

from executor_adapter import current_job
from executor_adapter.prefect import JobTaskRunner, job_task
from executor_adapter.prefect.mirror import runs
from tests.benchmarks.apart import apart
from tests.prefect.conftest import Api
from tests.prefect.offline_flow import TASKS, run_while_offline
from tests.waiting import PATIENCE, wait_for


@job_task(pool="thread", retry_attempts=0)
def double(x: int) -> int:
    return 2 * x


@job_task(retry_attempts=0)
async def double_async(x: int) -> int:
    return 2 * x


@task
def plain(x: int) -> int:
    return x + 1


@task
def calls_a_job_task(x: int) -> Any:
    state = double(x, return_state=True)
    return state.result(), state.state_details.task_run_id


@pytest.mark.nightly
def test_a_server_that_was_unreachable_has_all_states_when_the_flow_ends(api: Api, prefect_api: str) -> None:
    """The end of a flow waits until a server that was unreachable has all states."""
    ids = apart(run_while_offline, int(prefect_api.removesuffix("/api").rpartition(":")[2]))
    assert len(ids) == TASKS
    for task_run_id in ids:
        assert api.task_run(task_run_id)["state_name"] == "Completed"
        assert api.state_names(task_run_id) == ["Pending", "Running", "Completed"]


def test_the_mirror_sends_what_prefects_engine_sends(api: Api) -> None:
    """A task under Prefect's own runner and under ours has the same record, except for ids and times."""

    def run() -> UUID:
        first = plain.submit(1)
        with tags("around"):
            second = plain.with_options(tags=["own"], retries=2).submit(first)  # type: ignore[arg-type]
        second.wait()
        return second.task_run_id

    theirs = flow(run, name="both")()
    ours = flow(run, name="both", task_runner=JobTaskRunner(2, pool="thread"))()
    wait_for(lambda: api.task_run(theirs)["state_name"] == "Completed")
    assert _without_ids(api.task_run(ours)) == _without_ids(api.task_run(theirs))
    for each in (theirs, ours):  # The server records events and task runs separately.
        wait_for(lambda each=each: len(_events(api, each)) == 3)
    assert _events(api, ours) == _events(api, theirs)


_DIFFER = {
    *{"id", "created", "updated", "name", "flow_run_id", "dynamic_key", "state_id", "state", "task_inputs"},
    *{"expected_start_time", "start_time", "end_time", "total_run_time"},
    *{"estimated_run_time", "estimated_start_time_delta"},
}


def _without_ids(run: dict[str, Any]) -> dict[str, Any]:
    inputs = {name: [each["input_type"] for each in given] for name, given in run["task_inputs"].items()}
    return {name: value for name, value in run.items() if name not in _DIFFER} | {"task_inputs": inputs}


def _events(api: Api, task_run_id: UUID) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Return each event's name, its related resources and its state change."""
    wanted = {"filter": {"resource": {"id": [f"prefect.task-run.{task_run_id}"]}, "order": "ASC"}}
    found = api.post("/events/filter", wanted)["events"]
    return [(each["event"], sorted(map(_related, each["related"])), _change(each["payload"])) for each in found]


def _related(related: dict[str, str]) -> str:
    role = related["prefect.resource.role"]
    return related["prefect.resource.id"] if role == "tag" else role


def _change(payload: dict[str, Any]) -> dict[str, Any]:
    return {name: payload[name] for name in ("intended", "initial_state")}


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_a_worker_of_prefects_process_pool_prefects_engine_reports(api: Api) -> None:
    """A worker of Prefect's process pool passes its events to the flow's process, before it may end."""

    @flow(task_runner=ProcessPoolTaskRunner(1))
    def run() -> Any:
        return calls_a_job_task.submit(4).result()

    value, task_run_id = run()
    assert value == 8
    wait_for(lambda: api.task_run(task_run_id)["state_name"] == "Completed")


def test_a_process_exits_only_once_its_states_are_recorded(api: Api, tmp_path: Path) -> None:
    """A script that runs one job task outside a flow loses no state."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        from executor_adapter.prefect import job_task

        @job_task(retry_attempts=0)
        def alone() -> int:
            return 1

        print(alone(return_state=True).state_details.task_run_id)
        """)
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=PATIENCE)
    task_run_id = ended.stdout.split()[-1]
    assert api.task_run(task_run_id)["state_name"] == "Completed"
    assert api.state_names(task_run_id) == ["Pending", "Running", "Completed"]


def count_mirrors() -> int:
    """Count the mirrors that send in this process."""
    return sum(thread.name == "prefect-mirror" for thread in threading.enumerate())


def test_a_call_under_a_runner_without_an_end_is_recorded_when_it_returns(api: Api) -> None:
    """A call under a runner that is not notified of the flow's end is recorded; only the last mirror is kept."""

    @flow(task_runner=PrefectTaskRunner())
    def run() -> list[Any]:
        return [double(1, return_state=True), double(2, return_state=True)]

    @flow(task_runner=PrefectTaskRunner())
    async def run_async() -> list[Any]:
        return await asyncio.gather(*(double_async(x, return_state=True) for x in range(3)))

    before = count_mirrors()
    for states in (run(), asyncio.run(run_async()), run(), run()):
        for state in states:
            assert api.task_run(state.state_details.task_run_id)["state_name"] == "Completed"
    assert count_mirrors() <= before + 1


def test_calls_of_one_flow_under_a_runner_without_an_end_share_a_mirror(api: Api) -> None:
    """A further call in the same flow run does not connect to the server anew, which would take most of its time."""

    @flow(task_runner=PrefectTaskRunner())
    def run() -> list[object]:
        mirrors: list[object] = []
        for number in range(2):
            state = double(number, return_state=True)
            mirrors.append(runs.find(state.state_details.flow_run_id))
        return mirrors

    first, second = run()
    assert first is second is not None


def test_after_an_interrupt_at_a_prompt_later_states_are_sent_as_before(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at a prompt, where the program continues, hurries only the states so far."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    ids: list[str] = []
    ended = threading.Event()

    @job_task(pool="thread", retry_attempts=0)
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert ended.wait(PATIENCE)

    @job_task(pool="thread", retry_attempts=0)
    def later() -> None:
        ids.append(current_job().job_id)
        assert ended.wait(PATIENCE)

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted()
    finally:
        signal.signal(signal.SIGINT, handler)
    calling = threading.Thread(target=later)
    calling.start()
    try:
        wait_for(lambda: ids and api.task_run(ids[0])["state_name"] == "Running")
    finally:
        ended.set()
        calling.join()
    wait_for(lambda: api.state_names(ids[0]) == ["Pending", "Running", "Completed"])
