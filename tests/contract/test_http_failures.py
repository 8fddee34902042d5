"""What becomes of a job that talks to a server which fails: over real HTTP, in every pool."""

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


def with_httpx(url: str) -> Any:
    answer = httpx.get(url, timeout=5)
    answer.raise_for_status()
    return answer.json()


def with_requests(url: str) -> Any:
    with requests.get(url, timeout=5) as answer:
        answer.raise_for_status()
        return answer.json()


def with_urllib(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        error.close()  # it is the answer too
        raise


CLIENTS = pytest.mark.parametrize("ask", [with_httpx, with_requests, with_urllib])


@contextmanager
def answering(*answers: Answer) -> Iterator[str]:
    """A server that gives these answers in turn, and the last one from then on."""
    left = list(answers)
    with serving(lambda path, body: left.pop(0) if len(left) > 1 else left[0]) as (url, _):
        yield url


@pytest.fixture(scope="module")
def executors() -> Iterator[dict[str, JobExecutor]]:
    """Those made so far, by how they start processes: one each for all tests, since its workers import the clients."""
    made: dict[str, JobExecutor] = {}
    yield made
    for executor in made.values():
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


FINE = as_json({"rows": 3})


def status(code: int, **headers: str) -> Answer:
    return code, {name.replace("_", "-"): value for name, value in headers.items()}, b"no"


@CLIENTS
@pytest.mark.parametrize("code", [500, 408])
def test_what_may_pass_is_retried(executor: JobExecutor, make_job: MakeJob, ask: Any, code: int) -> None:
    with answering(status(code), FINE) as url:
        future = executor.submit(make_job(ask, url))
        assert future.result() == {"rows": 3}
    assert codes(future.job) == ["API_ERROR", None]


@CLIENTS
@pytest.mark.parametrize(("code", "said"), [(404, "REQUEST_ERROR"), (401, "CONFIGURATION_ERROR")])
def test_what_would_be_refused_again_is_not(
    executor: JobExecutor, make_job: MakeJob, ask: Any, code: int, said: str
) -> None:
    """Also where the error itself cannot travel from its worker, as httpx's cannot."""
    with answering(status(code), FINE) as url:
        future = executor.submit(make_job(ask, url))
        assert future.exception() is not None
    assert codes(future.job) == [said]


@CLIENTS
def test_a_server_that_asks_for_time_gets_it(executor: JobExecutor, make_job: MakeJob, ask: Any) -> None:
    """The retry comes no sooner than Retry-After says, though the policy would have it at once."""
    with answering(status(429, Retry_After="1"), FINE) as url:
        future = executor.submit(make_job(ask, url, retry_delay=0.0))
        assert future.result() == {"rows": 3}
    assert codes(future.job) == ["RATE_LIMITED", None]
    assert future.job.duration is not None
    assert future.job.duration >= 1.0


@CLIENTS
def test_nobody_there_is_a_network_error(executor: JobExecutor, make_job: MakeJob, ask: Any) -> None:
    job = make_job(ask, f"http://127.0.0.1:{free_port()}", retry_attempts=1)
    assert executor.submit(job).exception() is not None
    assert codes(job) == ["NETWORK_ERROR", "NETWORK_ERROR"]


@CLIENTS
def test_an_answer_that_is_no_json_is_broken_data(executor: JobExecutor, make_job: MakeJob, ask: Any) -> None:
    with answering((200, {}, b"<html>")) as url:
        job = make_job(ask, url)
        assert executor.submit(job).exception() is not None
    assert codes(job) == ["DATA_ERROR"]
