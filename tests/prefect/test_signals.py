"""A flow whose process is interrupted ends its jobs, and the server records them as Cancelled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for

FLOW = """
import os, sys, time
from pathlib import Path
from prefect import flow
from executor_adapter import JobExecutor
from executor_adapter.prefect import job_task

@job_task(pool=sys.argv[1], retry_attempts=3)
def slow(folder: str) -> None:
    Path(folder, f"pid-{os.getpid()}").touch()
    time.sleep(60)

@flow
def run(folder: str) -> None:
    futures = [slow.submit(folder) for _ in range(4)]
    Path(folder, "flow-run").write_text(str(futures[0].state.state_details.flow_run_id))
    if sys.argv[3] == "waiting":
        for future in futures:
            future.result()
    elif sys.argv[3] == "calling":
        slow(folder)
    else:
        while len(list(Path(folder).glob("pid-*"))) < 2:  # What has not begun when a flow ends is cancelled.
            time.sleep(0.05)

if __name__ == "__main__":
    with JobExecutor(max_workers=2):
        run(sys.argv[2])
"""


def _names(api: Api, flow_run_id: UUID) -> list[str]:
    return [run["state_name"] for run in api.task_runs(flow_run_id)]


@pytest.mark.parametrize(
    ("pool", "doing", "jobs", "number"),
    [
        pytest.param("process", "waiting", 4, signal.SIGTERM, marks=pytest.mark.chaos),
        pytest.param("process", "calling", 5, signal.SIGINT, marks=pytest.mark.nightly),
        ("process", "leaving", 4, signal.SIGTERM),
        pytest.param("thread", "waiting", 4, signal.SIGINT, marks=pytest.mark.nightly),
    ],
)
def test_a_signal_to_the_flows_process_cancels_all_jobs(
    api: Api, scratch: Path, pool: str, doing: str, jobs: int, number: signal.Signals
) -> None:
    """The process ends long before its jobs would and leaves no worker; the server has each job Cancelled."""
    script = scratch / "a_flow.py"
    script.write_text(FLOW)
    command = [sys.executable, str(script), pool, str(scratch), doing]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with (scratch / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=output,
            stderr=output,
            # The tests may be a background job of a shell, which ignores SIGINT and passes that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        pids = wait_for(_at_least(scratch, 2 if pool == "process" else 1))
        flow_run_id = UUID((scratch / "flow-run").read_text())
        wait_for(lambda: _names(api, flow_run_id).count("Running") == 2 and len(_names(api, flow_run_id)) == jobs)
        process.send_signal(number)
        process.wait(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not any(_is_alive(pid) for pid in pids))  # Idle workers end just after their host.
    wait_for(lambda: _names(api, flow_run_id) == ["Cancelled"] * jobs)


INTERRUPTED = """
import asyncio, os, signal, time
from prefect import flow
from executor_adapter import Job
from executor_adapter.prefect import arun_jobs, job_task, run_jobs

def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

jobs = lambda function, *args: [Job(function=function, args=args, pool="thread", retry_attempts=0)]

@flow
def run(function, *args) -> None:
    print(run_jobs(jobs(function, *args))[0].value)

@flow
async def run_async(function, *args) -> None:
    print((await arun_jobs(jobs(function, *args)))[0].value)

@job_task(pool="thread", retry_attempts=0)
def call(function, *args):
    return function(*args)

if __name__ == "__main__":
    for again in (run, lambda *call: asyncio.run(run_async(*call)), lambda *given: print(call(*given))):
        try:
            run(interrupt)
        except KeyboardInterrupt:
            again(pow, 2, 3)
"""


def test_a_program_that_goes_on_after_an_interrupt_runs_further_jobs(prefect_api: str, scratch: Path) -> None:
    """A caught Ctrl-C ends the jobs of its flow; a later flow, and a job task without one, get a new executor."""
    script = scratch / "interrupted.py"
    script.write_text(INTERRUPTED)
    ran = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert ran.stdout.split() == ["8", "8", "8"], ran.stderr


def _at_least(folder: Path, count: int) -> Callable[[], list[int]]:
    def pids() -> list[int]:
        found = [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]
        flow_run = folder / "flow-run"
        return found if len(found) >= count and flow_run.exists() and flow_run.read_text() else []

    return pids


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
