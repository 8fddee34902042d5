"""A user's tests with the fixtures of the plugin, which type checkers must accept; test_pytest_plugin.py runs them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pytest_mock import MockerFixture

from executor_adapter import Job, JobStatus, current_job
from executor_adapter.testing import FakeClock, InlineExecutor


def collect(pages: list[int]) -> int:
    if not pages:
        raise ConnectionError("no pages yet")
    return len(pages)


def test_a_retry_waits_for_the_clock(inline_executor: InlineExecutor, inline_clock: FakeClock) -> None:
    pages: list[int] = []
    future = inline_executor.options(retry_delay=60).call(collect, pages)
    assert future.job.status is JobStatus.RETRYING
    pages.append(1)
    inline_clock.advance(66)
    assert future.result(timeout=0) == 1


def test_a_job_that_waits_at_the_end_is_cancelled(inline_executor: InlineExecutor) -> None:
    assert inline_executor.call(collect, []).job.status is JobStatus.RETRYING


def test_each_test_has_an_executor_of_its_own(inline_executor: InlineExecutor, inline_clock: FakeClock) -> None:
    assert inline_executor.jobs() == []
    assert inline_clock() == 0


def test_a_mock_is_called_as_a_job(mocker: MockerFixture, inline_executor: InlineExecutor) -> None:
    function = mocker.Mock(return_value=3)
    assert inline_executor.run(Job(function=function, args=(1,), kwargs={"size": 2})) == 3
    function.assert_called_once_with(1, size=2)


def test_a_function_is_patched(mocker: MockerFixture, inline_executor: InlineExecutor) -> None:
    mocker.patch(f"{__name__}.collect", return_value=7)
    assert inline_executor.call(collect, []).result(timeout=0) == 7


@pytest.mark.usefixtures("one_attempt")
def test_one_attempt_is_made(inline_executor: InlineExecutor) -> None:
    assert inline_executor.call(collect, []).job.error_code == "NETWORK_ERROR"


def test_attempts_are_limited_within_one_test(
    set_testing: Callable[..., object], inline_executor: InlineExecutor
) -> None:
    set_testing(attempts=2)
    assert inline_executor.call(collect, []).job.attempt == 2
    set_testing()
    assert inline_executor.call(collect, []).job.attempt == 1


def test_the_limit_is_gone_in_the_next_test(inline_executor: InlineExecutor) -> None:
    assert inline_executor.call(collect, []).job.policy.retry_attempts == 3
    assert inline_executor.call(lambda: current_job().attempt).result(timeout=0) == 1
