"""One flow whose task runs end in every state, and some of which are not over yet.

python every_state.py FOLDER        # goes on once FOLDER/seen exists
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from prefect import flow

from executor_adapter import JobExecutor, RetryPolicy
from executor_adapter.prefect import job_task

LONG = 120.0
LIMIT = 200 << 20


def sleeps(folder: str) -> None:
    time.sleep(LONG)


def waits(folder: str) -> None:
    while not Path(folder, "seen").exists():
        time.sleep(0.05)


def returns(folder: str) -> int:
    return 42


def dies(folder: str) -> None:
    os._exit(3)


def grows(folder: str) -> None:
    bytearray(2 * LIMIT)
    time.sleep(LONG)


def fails(folder: str) -> None:
    raise ValueError("broken")


def fails_once(folder: str) -> None:
    """The second attempt lasts."""
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
LATE_RETRY = RetryPolicy(retry_attempts=1, retry_delay=LONG)

OVER = {
    "Completed": task(returns, "Completed"),
    "TimedOut": task(sleeps, "TimedOut", max_runtime=1.0),
    "Crashed": task(dies, "Crashed"),
    "OutOfMemory": task(grows, "OutOfMemory", memory_limit=LIMIT),
    "Failed": task(fails, "Failed"),
    "Cancelled": task(sleeps, "Cancelled"),
}
LIVE = {
    "AwaitingRetry": task(fails, "AwaitingRetry", retry=LATE_RETRY),
    "Retrying": task(fails_once, "Retrying", retry=ONE_RETRY),
    "Running": task(waits, "Running"),
    "Pending": task(returns, "Pending"),
}


@flow
def every_state(folder: str) -> None:
    with JobExecutor(max_workers=2) as executor:
        over = {name: each.submit(folder) for name, each in OVER.items()}
        _cancel(executor, str(over["Cancelled"].task_run_id))
        for future in over.values():
            future.wait()
        # Two workers: what runs holds them, so the last one waits for its turn.
        live = []
        for name, each in LIVE.items():
            live.append(each.submit(folder))
            _wait_for(live[-1], name)
        Path(folder, "there").touch()
        waits(folder)
        _cancel(executor, str(live[0].task_run_id))
        for future in live:
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
