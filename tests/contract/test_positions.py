"""Where a function failed or hung, as the error of its job shows it: the function's own file and lines, not ours."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import executor_adapter
from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.exceptions import JobTimeoutError, WorkerCrashedError
from executor_adapter.exceptions.display import traceback_text
from tests.waiting import PATIENCE

OWN_FILES = os.path.dirname(executor_adapter.__file__) + os.sep
SPAWN = Settings(executor=ExecutorSettings(start_method="spawn"))


def _functions() -> dict[str, Callable[..., Any]]:
    """Functions that hang. They are local, so that no worker has to import this module within their limit."""

    def hang() -> None:
        while True:
            time.sleep(0.05)  # It hangs here.

    async def hang_inside() -> None:
        await asyncio.sleep(3600)  # It hangs here.

    async def hang_in_a_coroutine() -> None:
        await hang_inside()

    return {"function": hang, "coroutine": hang_in_a_coroutine}


HANGING = _functions()


@pytest.fixture(scope="module")
def executor() -> Iterator[JobExecutor]:
    """An executor of two workers for the tests of this module."""
    with JobExecutor(max_workers=2, config=Settings()) as made:
        yield made


def _error_of(executor: JobExecutor, function: Callable[..., Any], pool: str, **options: Any) -> BaseException:
    error = executor.submit(Job(function=function, pool=pool, retry_attempts=0, **options)).exception(timeout=PATIENCE)
    assert error is not None
    return error


def _shown(error: BaseException) -> str:
    return traceback_text(error, error.__traceback__)


@pytest.mark.parametrize(
    ("pool", "function"),
    [
        ("process", "function"),
        ("process", "coroutine"),
        ("thread", "function"),
        ("thread", "coroutine"),
        ("coroutine", "coroutine"),
    ],
)
def test_a_timeout_shows_where_the_function_hung(executor: JobExecutor, pool: str, function: str) -> None:
    """The error of a timeout shows the file and line where the function was, and no frames of this package."""
    error = _error_of(executor, HANGING[function], pool, max_runtime=0.2)
    assert isinstance(error, JobTimeoutError)
    shown = _shown(error)
    assert f'File "{__file__}"' in shown
    assert "# It hangs here." in shown
    assert OWN_FILES not in shown


def test_a_spawned_worker_shows_where_the_function_hung() -> None:
    """A timeout in a spawned worker shows the file and line where the function was."""
    with JobExecutor(max_workers=1, config=SPAWN) as executor:
        shown = _shown(_error_of(executor, HANGING["function"], "process", max_runtime=0.2))
    assert "# It hangs here." in shown
    assert OWN_FILES not in shown


@pytest.mark.parametrize("pool", ["process", "thread"])
def test_a_soft_timeout_shows_the_function_alone(executor: JobExecutor, pool: str) -> None:
    """The traceback of a soft timeout ends in the function, without the signal handler that raised in it."""
    shown = _shown(_error_of(executor, HANGING["function"], pool, soft_timeout=0.2))
    assert "# It hangs here." in shown
    assert OWN_FILES not in shown


@pytest.mark.parametrize("pool", ["process", "thread"])
def test_a_traceback_has_the_file_and_the_source_of_a_local_function(executor: JobExecutor, pool: str) -> None:
    """The traceback of a function that is sent by value names its true file and shows its lines."""

    def fail() -> None:
        raise LookupError("on purpose")

    shown = _shown(_error_of(executor, lambda: fail(), pool))
    assert f'File "{__file__}"' in shown
    assert 'raise LookupError("on purpose")' in shown
    assert "<dynamic-code>" not in shown
    assert OWN_FILES not in shown


def test_a_traceback_of_a_coroutine_has_no_frames_of_the_pool(executor: JobExecutor) -> None:
    """The traceback of a coroutine that failed begins with the coroutine."""

    async def fail() -> None:
        raise LookupError("on purpose")

    assert OWN_FILES not in _shown(_error_of(executor, fail, "coroutine"))


def test_the_tail_of_a_crash_has_what_was_printed_and_logged(executor: JobExecutor) -> None:
    """The output_tail of a crash has printed lines and logged ones, though no handler writes those to a stream."""

    def crash() -> None:
        print("printed last")
        logging.getLogger("collector").warning("logged last")
        os._exit(3)

    error = _error_of(executor, crash, "process")
    assert isinstance(error, WorkerCrashedError)
    assert "printed last\n" in error.output_tail
    assert "WARNING collector: logged last\n" in error.output_tail


@pytest.mark.chaos  # It depends on how fast the host reads.
def test_the_tail_of_a_crash_has_the_last_of_too_many_records(executor: JobExecutor) -> None:
    """The output_tail of a crash has what was logged last, though the job logged more than is reported."""

    def flood() -> None:
        log = logging.getLogger("collector")
        for number in range(15_000):
            log.warning("record %d", number)
        os._exit(3)

    error = _error_of(executor, flood, "process")
    assert isinstance(error, WorkerCrashedError)
    assert error.output_tail.endswith("WARNING collector: record 14999\n")


def test_the_tail_of_a_crash_has_nothing_of_an_earlier_job() -> None:
    """What the previous job of the same worker logged is not in the output_tail of a crash."""
    with JobExecutor(max_workers=1, config=Settings()) as alone:
        log = logging.getLogger("collector").warning
        assert (
            alone.submit(Job(function=lambda: log("logged before"), pool="process")).exception(timeout=PATIENCE) is None
        )
        error = _error_of(alone, lambda: os._exit(3), "process")
    assert isinstance(error, WorkerCrashedError)
    assert error.output_tail == ""
