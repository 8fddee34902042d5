"""A flow with a task run in every state. It goes on once the file FOLDER/seen exists.

python every_state.py FOLDER
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from executor_adapter import JobExecutor, RetryPolicy
from executor_adapter.prefect import job_task

LONG_SECONDS = 120.0
MEMORY_LIMIT_BYTES = 200 << 20


def sleeps(folder: str) -> None:
    time.sleep(LONG_SECONDS)


def waits(folder: str) -> None:
    while not Path(folder, "seen").exists():
        time.sleep(0.05)


def returns(folder: str) -> int:
    return 42


def dies(folder: str) -> None:
    os._exit(3)


def grows(folder: str) -> None:
    held = bytearray(2 * MEMORY_LIMIT_BYTES)
    time.sleep(LONG_SECONDS)
    del held  # Until here: what is freed at once is not always seen.


def fails(folder: str) -> None:
    raise ValueError("broken")


def fails_once(folder: str) -> None:
    """Fail at the first attempt; the second one runs until the test has seen it."""
    begun = Path(folder, "begun")
    if not begun.exists():
        begun.touch()
        raise ConnectionError("reset")
    waits(folder)


def task(function: object, name: str, **options: object) -> object:
    assert callable(function)
    options = {"pool": "process", "retry_attempts": 0} | options
    return job_task(function, name=name, task_run_name=name, **options)


ONE_RETRY = RetryPolicy(retry_attempts=1, retry_delay=0.1)
LATE_RETRY = RetryPolicy(retry_attempts=1, retry_delay=LONG_SECONDS)

FINISHED = {
    "Completed": task(returns, "Completed"),
    "TimedOut": task(sleeps, "TimedOut", max_runtime=1.0),
    "Crashed": task(dies, "Crashed"),
    "OutOfMemory": task(grows, "OutOfMemory", memory_limit=MEMORY_LIMIT_BYTES),
    "Failed": task(fails, "Failed"),
    "Cancelled": task(sleeps, "Cancelled"),
}
UNFINISHED = {
    "AwaitingRetry": task(fails, "AwaitingRetry", retry=LATE_RETRY),
    "Retrying": task(fails_once, "Retrying", retry=ONE_RETRY),
    "Running": task(waits, "Running"),
    "Pending": task(returns, "Pending"),
}


@flow
def every_state(folder: str) -> None:
    with JobExecutor(max_workers=2) as executor:
        finished = {name: each.submit(folder) for name, each in FINISHED.items()}
        _cancel(executor, str(finished["Cancelled"].task_run_id))
        for future in finished.values():
            future.wait()
        # The running ones hold both workers, so that the last one stays Pending.
        unfinished = []
        for name, each in UNFINISHED.items():
            unfinished.append(each.submit(folder))
            _wait_for(unfinished[-1], name)
        Path(folder, "there").write_text(str(flow_run.id))
        waits(folder)
        _cancel(executor, str(unfinished[0].task_run_id))
        for future in unfinished:
            future.wait()


def _cancel(executor: JobExecutor, job_id: str) -> None:
    while not executor.cancel(job_id):
        time.sleep(0.02)


def _wait_for(future: object, name: str) -> None:
    until = time.monotonic() + 30
    while future.state.name != name:  # type: ignore[attr-defined]
        assert time.monotonic() < until, f"{future.state} is not {name}"  # type: ignore[attr-defined]
        time.sleep(0.02)


if __name__ == "__main__":
    every_state(sys.argv[1])
