"""Spans of jobs and attempts, as an exporter of OpenTelemetry gets them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.monitoring import tracer_in_use
from tests.contract.conftest import MakeExecutor, MakeJob
from tests.contract.functions import collect, fail_until, fail_with_code
from tests.waiting import PATIENCE, wait_for


@pytest.fixture(scope="module")
def provider() -> TracerProvider:
    return TracerProvider()


@pytest.fixture
def spans(provider: TracerProvider, monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Set up a tracer provider for one test, and collect what it exports."""
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    exporter.shutdown()


@pytest.fixture
def executor(spans: InMemorySpanExporter, make_executor: MakeExecutor) -> JobExecutor:
    return make_executor()


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def current_span_id() -> int:
    return trace.get_current_span().get_span_context().span_id


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def run(executor: JobExecutor, job: Job) -> Any:
    """Run a job until all its spans have ended, and return its value or error."""
    future = executor.submit(job)
    error = future.exception()
    executor.shutdown()
    return future.result() if error is None else error


def test_a_job_s_span_is_in_that_of_its_submitter_and_its_function_in_it(
    executor: JobExecutor, make_job: MakeJob, spans: InMemorySpanExporter, provider: TracerProvider
) -> None:
    """In every pool a job's span is a child of its submitter's, and the function's spans of the job's."""
    with provider.get_tracer("test").start_as_current_span("submitter") as around:
        seen = run(executor, make_job(current_span_id, job_id="traced", tool_name="radar"))
    found = by_name(spans)
    job, attempt = found["job job"], found["attempt 1"]
    assert job.parent is not None
    assert job.parent.span_id == around.get_span_context().span_id
    assert attempt.parent is not None
    assert attempt.parent.span_id == id_of(job) == seen
    assert job.attributes is not None
    assert job.attributes["executor_adapter.job.id"] == "traced"
    assert job.attributes["executor_adapter.job.tool"] == "radar"


def test_each_attempt_has_a_span_with_how_it_ended(
    executor: JobExecutor, make_job: MakeJob, spans: InMemorySpanExporter, tmp_path: Any
) -> None:
    """Each attempt has a span with its number, pool and outcome."""
    run(executor, make_job(fail_until, str(tmp_path / "calls"), 2))
    found = by_name(spans)
    first, second = found["attempt 1"], found["attempt 2"]
    assert (first.status.status_code, second.status.status_code) == (StatusCode.ERROR, StatusCode.UNSET)
    assert first.status.description == "NETWORK_ERROR: ConnectionError: call 1"
    assert first.attributes is not None
    assert first.attributes["error.type"] == "NETWORK_ERROR"
    assert second.attributes is not None
    assert "error.type" not in second.attributes
    assert first.end_time is not None
    assert second.start_time is not None
    assert first.end_time <= second.start_time
    assert found["job job"].status.status_code is StatusCode.UNSET


def test_a_failed_attempt_has_an_exception_event(
    executor: JobExecutor, make_job: MakeJob, spans: InMemorySpanExporter
) -> None:
    """The spans of a failed attempt and its job have an exception event with class, message and own traceback."""
    run(executor, make_job(fail_with_code, "DATA_ERROR", retry_attempts=0))
    found = by_name(spans)
    for span in (found["attempt 1"], found["job job"]):
        (event,) = span.events
        assert event.name == "exception"
        assert event.timestamp == span.end_time
        attributes = dict(event.attributes or {})
        assert attributes["exception.type"] == "executor_adapter.exceptions.DataCollectionException"
        assert attributes["exception.message"] == "broken: DATA_ERROR"
        assert "in fail_with_code" in str(attributes["exception.stacktrace"])


def test_a_timeout_s_span_shows_where_the_function_was(executor: JobExecutor, spans: InMemorySpanExporter) -> None:
    """The exception event of a job past its limit has the position of its function."""
    run(executor, Job(function=wait_forever, pool="thread", max_runtime=0.3, retry_attempts=0))
    (event,) = by_name(spans)["job job"].events
    attributes = dict(event.attributes or {})
    assert attributes["exception.type"] == "executor_adapter.exceptions.JobTimeoutError"
    assert "in wait_forever" in str(attributes["exception.stacktrace"])


def wait_forever() -> None:
    while True:
        time.sleep(0.01)


class SlowError(Exception):
    """An error whose text takes until it is let go."""

    may_end = threading.Event()

    def __str__(self) -> str:
        self.may_end.wait(PATIENCE)
        return "at last"


def test_an_error_whose_text_takes_long_delays_no_span(executor: JobExecutor, spans: InMemorySpanExporter) -> None:
    """The exception event is made without the exception's own code, which may hang on the supervisor's thread."""

    def fail_slowly() -> None:
        raise SlowError

    slow = executor.submit(Job(function=fail_slowly, pool="thread", job_type="slow", retry_attempts=0))
    executor.submit(Job(function=list, pool="thread", job_type="quick")).result()
    wait_for(lambda: "job quick" in by_name(spans))
    SlowError.may_end.set()
    assert slow.exception() is not None
    wait_for(lambda: "job slow" in by_name(spans))
    (event,) = by_name(spans)["job slow"].events
    assert "fail_slowly" in str(dict(event.attributes or {})["exception.stacktrace"])


def test_a_failed_job_s_span_says_so_and_a_completed_one_counts_its_records(
    executor: JobExecutor, make_job: MakeJob, spans: InMemorySpanExporter
) -> None:
    """A failed job's span has its error, and a completed one its number of records."""
    failed = executor.submit(make_job(fail_with_code, "DATA_ERROR", job_type="broken"))
    fine = executor.submit(make_job(collect, 7, job_type="fine"))
    assert failed.exception() is not None
    fine.result()
    executor.shutdown()
    found = by_name(spans)
    assert found["job broken"].status.description == "DATA_ERROR: broken: DATA_ERROR"
    attributes = found["job fine"].attributes
    assert attributes is not None
    assert attributes["executor_adapter.records_processed"] == 7


def test_a_traced_job_s_output_is_received(executor: JobExecutor, capsys: pytest.CaptureFixture[str]) -> None:
    """A traced job's output is still received."""
    job = Job(function=print, args=("heard",), pool="process")
    run(executor, job)
    assert capsys.readouterr().out == "heard\n"


def test_a_job_that_is_refused_leaves_no_span(executor: JobExecutor, spans: InMemorySpanExporter) -> None:
    """A refused job opens no span."""
    with pytest.raises(ValueError, match="memory_limit"):
        executor.submit(Job(function=list, pool="thread", memory_limit=1))
    executor.shutdown()
    assert spans.get_finished_spans() == ()


def test_without_a_tracer_nothing_is_imported_or_traced() -> None:
    """Without a tracer provider nothing is imported or traced, even if opentelemetry is imported."""
    with JobExecutor(1, config=Settings()) as executor:
        assert executor._tracer is None
    assert tracer_in_use() is None
    code = (
        "import sys, json; from executor_adapter import Job, JobExecutor; executor = JobExecutor(1);"
        "executor.run(Job(function=list)); print(json.dumps([m for m in sys.modules if 'opentelemetry' in m]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert json.loads(done.stdout) == []
