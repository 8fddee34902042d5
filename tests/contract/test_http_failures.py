"""Tests of jobs whose HTTP server fails: over real HTTP, in every pool, with three client libraries."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import requests

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from tests.api_server import Answer, as_json, serving
from tests.contract.conftest import MakeJob
from tests.servers import free_port
from tests.waiting import PATIENCE


def with_httpx(url: str) -> Any:
    answer = httpx.get(url, timeout=PATIENCE)
    answer.raise_for_status()
    return answer.json()


def with_requests(url: str) -> Any:
    with requests.get(url, timeout=PATIENCE) as answer:
        answer.raise_for_status()
        return answer.json()


def with_urllib(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        error.close()  # The error is the response too, and holds its socket.
        raise


CLIENTS = pytest.mark.parametrize("fetch", [with_httpx, with_requests, with_urllib])


@contextmanager
def server_that_answers(*answers: Answer) -> Iterator[str]:
    """Run a server that gives these answers in turn, and then repeats the last one."""
    remaining = list(answers)
    with serving(lambda path, body: remaining.pop(0) if len(remaining) > 1 else remaining[0]) as (url, _):
        yield url


@pytest.fixture(scope="module")
def executors() -> Iterator[dict[str, JobExecutor]]:
    """Return the executors by start method; the tests share them, since each worker imports the clients."""
    by_start_method: dict[str, JobExecutor] = {}
    yield by_start_method
    for executor in by_start_method.values():
        executor.shutdown(timeout=0)


@pytest.fixture
def executor(pool: str, executors: dict[str, JobExecutor]) -> JobExecutor:
    config = Settings()
    method = config.executor.start_method
    if method not in executors:
        executors[method] = JobExecutor(2, config=config)
    return executors[method]


def codes(job: Job) -> list[str | None]:
    return [attempt.error_code for attempt in job.attempts]


SUCCESS = as_json({"rows": 3})


def status(code: int, **headers: str) -> Answer:
    return code, {name.replace("_", "-"): value for name, value in headers.items()}, b"no"


@CLIENTS
@pytest.mark.parametrize("code", [500, 408])
def test_a_temporary_failure_is_retried(executor: JobExecutor, make_job: MakeJob, fetch: Any, code: int) -> None:
    """A server error or a request timeout is retried as API_ERROR."""
    with server_that_answers(status(code), SUCCESS) as url:
        future = executor.submit(make_job(fetch, url))
        assert future.result() == {"rows": 3}
    assert codes(future.job) == ["API_ERROR", None]


@CLIENTS
@pytest.mark.parametrize(("code", "error_code"), [(404, "REQUEST_ERROR"), (401, "CONFIGURATION_ERROR")])
def test_a_rejected_request_is_not_retried(
    executor: JobExecutor, make_job: MakeJob, fetch: Any, code: int, error_code: str
) -> None:
    """A rejected request is not retried, even if its error cannot be pickled, as httpx's cannot."""
    with server_that_answers(status(code), SUCCESS) as url:
        future = executor.submit(make_job(fetch, url))
        assert future.exception() is not None
    assert codes(future.job) == [error_code]


@CLIENTS
def test_retry_after_delays_the_retry(executor: JobExecutor, make_job: MakeJob, fetch: Any) -> None:
    """A retry waits as long as Retry-After asks, though the policy would retry at once."""
    with server_that_answers(status(429, Retry_After="1"), SUCCESS) as url:
        future = executor.submit(make_job(fetch, url, retry_delay=0.0))
        assert future.result() == {"rows": 3}
    assert codes(future.job) == ["RATE_LIMITED", None]
    assert future.job.duration is not None
    assert future.job.duration >= 1.0


@CLIENTS
def test_an_unreachable_server_is_a_network_error(executor: JobExecutor, make_job: MakeJob, fetch: Any) -> None:
    """A refused connection is retried as NETWORK_ERROR."""
    job = make_job(fetch, f"http://127.0.0.1:{free_port()}", retry_attempts=1)
    assert executor.submit(job).exception() is not None
    assert codes(job) == ["NETWORK_ERROR", "NETWORK_ERROR"]


@CLIENTS
def test_an_answer_that_is_not_json_is_a_data_error(executor: JobExecutor, make_job: MakeJob, fetch: Any) -> None:
    """A response that is not JSON is a DATA_ERROR and is not retried."""
    with server_that_answers((200, {}, b"<html>")) as url:
        job = make_job(fetch, url)
        assert executor.submit(job).exception() is not None
    assert codes(job) == ["DATA_ERROR"]
