"""The output of a job is in the log of its task run: every line, in order, under load and before a crash."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from uuid import UUID

import pytest
from prefect import flow, get_run_logger

from executor_adapter import JobExecutor, current_job
from executor_adapter.exceptions import JobTimeoutError
from executor_adapter.prefect import job_task
from executor_adapter.prefect.child.logs import log_failed_attempt
from executor_adapter.worker import wire
from executor_adapter.worker.facts import facts_of
from tests.prefect.conftest import Api
from tests.waiting import PATIENCE, wait_for

LINES_PER_SECOND = 1_000


def by_logger() -> Callable[[str], object]:
    """Write by Prefect's run logger."""
    return get_run_logger().info


def by_job() -> Callable[[str], object]:
    """Write by the job's logger."""
    return current_job().logger.info


def by_print() -> Callable[[str], object]:
    """Write by print."""
    return print


def by_fd() -> Callable[[str], object]:
    """Write to file descriptor 1."""
    return lambda line: os.write(1, f"{line}\n".encode())


def by_turns() -> Callable[[str], object]:
    """Write by the run logger and by print in turn."""
    ways = [get_run_logger().info, print]
    return lambda line: ways[int(line.split()[1]) % 2](line)


def write_lines(way: str, lines: int) -> None:
    """Write that many lines, in bursts of ten, a thousand a second."""
    write = globals()[way]()
    begun = time.monotonic()
    for number in range(lines):
        write(f"line {number}")
        if number % 10 == 9:
            time.sleep(max(0.0, begun + (number + 1) / LINES_PER_SECOND - time.monotonic()))


def log_of(api: Api, task_run_id: UUID | str) -> list[str]:
    """Return all that the server has of the task run's log."""
    lines: list[str] = []
    while page := api.messages(task_run_id, offset=len(lines)):
        lines += page
    return lines


@pytest.mark.parametrize("lines", [1_000, pytest.param(5_000, marks=pytest.mark.chaos)])
@pytest.mark.parametrize(
    ("pool", "way"),
    [
        *(
            pytest.param("process", way, marks=pytest.mark.nightly)
            for way in ("by_logger", "by_print", "by_fd", "by_job")
        ),
        ("process", "by_turns"),
        *(pytest.param("thread", way, marks=pytest.mark.nightly) for way in ("by_job", "by_logger", "by_print")),
    ],
)
def test_a_thousand_lines_a_second_arrive_in_order(
    api: Api, executor: JobExecutor, pool: str, way: str, lines: int
) -> None:
    """No line of a fast writer is lost or out of order, in any pool and by any way to write."""
    prints = way in ("by_turns", "by_print", "by_fd")
    talks = job_task(write_lines, pool=pool, retry_attempts=0, log_prints=prints)

    @flow
    def run() -> UUID:
        future = talks.submit(way, lines)
        future.result()
        return future.task_run_id

    task_run_id = run()
    expected = [f"line {number}" for number in range(lines)]
    wait_for(lambda: api.messages(task_run_id, offset=lines))
    assert [line for line in log_of(api, task_run_id) if line.startswith("line")] == expected


def test_the_last_lines_before_a_crash_are_logged(api: Api, executor: JobExecutor) -> None:
    """With log_prints, the last lines of a worker that dies in C code, and a half-written one, are logged."""

    @job_task(pool="process", retry_attempts=0, log_prints=True)
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
    wait_for(lambda: any("Finished in state Crashed" in line for line in log_of(api, task_run_id)))
    lines = log_of(api, task_run_id)
    assert [line for line in lines if line.startswith("line")] == [f"line {number}" for number in range(100)]
    assert any(line.startswith("the last words") for line in lines)


def print_and_log() -> None:
    """Write a line by print, by the run logger and by the job's logger."""
    print("printed")
    get_run_logger().info("logged")
    current_job().logger.info("said")


@pytest.mark.parametrize("pool", ["process", "thread"])
def test_a_record_names_the_place_that_made_it(
    prefect_api: str, executor: JobExecutor, caplog: pytest.LogCaptureFixture, pool: str
) -> None:
    """A record of a function has its file, line and function, also if a worker process made it."""
    task_runs = logging.getLogger("prefect.task_runs")
    task_runs.addHandler(caplog.handler)
    try:
        flow(job_task(print_and_log, pool=pool, retry_attempts=0, log_prints=True))()
    finally:
        task_runs.removeHandler(caplog.handler)
    first = print_and_log.__code__.co_firstlineno + 2
    made = [(record.message, record.filename, record.module, record.lineno) for record in caplog.records]
    for line, message in enumerate(("printed", "logged", "said"), first):
        assert (message, "test_logs.py", "test_logs", line) in made
    assert {record.funcName for record in caplog.records if record.filename == "test_logs.py"} == {"print_and_log"}


def test_characters_that_a_server_cannot_store_are_replaced(api: Api, executor: JobExecutor) -> None:
    """Half a surrogate pair, as in a badly encoded file name, harms no other line or error."""

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
    wait_for(lambda: any("FileNotFoundError: caf?.csv" in line for line in log_of(api, task_run_id)))
    lines = log_of(api, task_run_id)
    assert [line for line in lines if line in ("before", "reading caf?.csv", "after")] == [
        "before",
        "reading caf?.csv",
        "after",
    ]
    assert any("encountered an exception FileNotFoundError: caf" in line for line in lines)


def test_a_timeout_that_is_retried_is_logged_with_where_it_was(caplog: pytest.LogCaptureFixture) -> None:
    """The line about a timeout after which another attempt follows shows where the function was."""
    error = JobTimeoutError("ran longer than max_runtime=1 s")
    error.__cause__ = wire.RemoteTraceback('The function was here:\n  File "collect.py", line 7, in read\n')
    log_failed_attempt(logging.getLogger("collector"), str(error), facts_of(error), delay=1.0)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "Next attempt in 1.0 s\nThe function was here:" in record.getMessage()


def test_one_setting_makes_each_line_of_the_console_json() -> None:
    """With Prefect's setting, what this package logs on the console is JSON and names the job."""
    code = (
        "from prefect.logging.configuration import setup_logging\n"
        "from executor_adapter import Job, JobExecutor\n"
        "setup_logging()\n"
        "with JobExecutor(1) as executor:\n"
        "    executor.submit(Job(function=int, args=('x' * 300,), pool='thread', job_id='j1', retry_attempts=0))\n"
    )
    env = os.environ | {"PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=PATIENCE)
    (found,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (found["name"], found["levelname"]) == ("executor_adapter", "ERROR")
    assert "j1: EXECUTION_ERROR" in str(found["args"])
