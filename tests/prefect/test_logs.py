"""What a job says stands on its task run: every line, in order, also under load and before a crash."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from uuid import UUID

import pytest
from prefect import flow, get_run_logger

from executor_adapter import JobExecutor, current_job
from executor_adapter.prefect import job_task
from tests.prefect.conftest import Api, Wait

A_SECOND = 1_000
PAGE = 200


def by_logger() -> Callable[[str], object]:
    return get_run_logger().info


def by_job() -> Callable[[str], object]:
    return current_job().logger.info


def by_print() -> Callable[[str], object]:
    return print


def by_fd() -> Callable[[str], object]:
    return lambda line: os.write(1, f"{line}\n".encode())


def by_turns() -> Callable[[str], object]:
    ways = [get_run_logger().info, print]
    return lambda line: ways[int(line.split()[1]) % 2](line)


def say(way: str, lines: int) -> None:
    """So many lines, in bursts of ten, a thousand a second."""
    write = globals()[way]()
    begun = time.monotonic()
    for number in range(lines):
        write(f"line {number}")
        if number % 10 == 9:
            time.sleep(max(0.0, begun + (number + 1) / A_SECOND - time.monotonic()))


def said(api: Api, task_run_id: UUID | str) -> list[str]:
    """All that the server has of the task run's log."""
    lines: list[str] = []
    while page := api.messages(task_run_id, offset=len(lines)):
        lines += page
    return lines


@pytest.mark.parametrize("lines", [1_000, pytest.param(5_000, marks=pytest.mark.chaos)])
@pytest.mark.parametrize(
    ("pool", "way"),
    [
        ("process", "by_logger"),
        ("process", "by_print"),
        ("process", "by_fd"),
        ("process", "by_turns"),
        ("process", "by_job"),
        ("thread", "by_job"),
        ("thread", "by_logger"),
        ("thread", "by_print"),
    ],
)
def test_a_thousand_lines_a_second_arrive_in_order(
    api: Api, wait_for: Wait, executor: JobExecutor, pool: str, way: str, lines: int
) -> None:
    prints = way in ("by_turns", "by_print")
    talks = job_task(say, pool=pool, retry_attempts=0, log_prints=prints)

    @flow
    def run() -> UUID:
        future = talks.submit(way, lines)
        future.result()
        return future.task_run_id

    task_run_id = run()
    expected = [f"line {number}" for number in range(lines)]
    wait_for(lambda: len(said(api, task_run_id)) >= lines + 1, 60)
    assert [line for line in said(api, task_run_id) if line.startswith("line")] == expected


def test_the_last_lines_before_a_crash_are_there(api: Api, wait_for: Wait, executor: JobExecutor) -> None:
    """The worker dies in C code, with a line half written."""

    @job_task(pool="process", retry_attempts=0)
    def dies() -> None:
        for number in range(100):
            print(f"line {number}")
        sys.stdout.flush()
        os.write(2, b"the last words")
        os.abort()

    @flow
    def run() -> UUID:
        future = dies.submit()
        future.wait()
        assert future.state.name == "Crashed"
        return future.task_run_id

    task_run_id = run()
    wait_for(lambda: any("Finished in state Crashed" in line for line in said(api, task_run_id)))
    lines = said(api, task_run_id)
    assert [line for line in lines if line.startswith("line")] == [f"line {number}" for number in range(100)]
    assert any(line.startswith("the last words") for line in lines)


def test_what_no_server_can_hold_is_replaced_and_harms_no_other_line(
    api: Api, wait_for: Wait, executor: JobExecutor
) -> None:
    """Half a surrogate pair, as in a file's name that is not encoded in UTF-8: said, and in an error."""

    @job_task(pool="process", retry_attempts=0, log_prints=True)
    def reads(name: str) -> None:
        print("before")
        print(f"reading {name}")
        print("after")
        raise FileNotFoundError(name)

    @flow
    def run() -> UUID:
        future = reads.submit("caf\udce9.csv")
        future.wait()
        return future.task_run_id

    task_run_id = run()
    wait_for(lambda: any("FileNotFoundError: caf?.csv" in line for line in said(api, task_run_id)))
    lines = said(api, task_run_id)
    assert [line for line in lines if line in ("before", "reading caf?.csv", "after")] == [
        "before",
        "reading caf?.csv",
        "after",
    ]
    assert any("EXECUTION_ERROR: caf" in line for line in lines)
