"""Metrics as a reader of OpenTelemetry's SDK gets them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import Settings
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.monitoring.telemetry import meter_in_use
from tests.insides import supervisor_of
from tests.waiting import wait_for

Points = dict[tuple[str, frozenset[str]], Any]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """Set up a meter provider for one test, and read what it collects."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    yield reader
    provider.shutdown()


def collected(reader: InMemoryMetricReader) -> Points:
    """Return each data point by its metric's name, without the package's, and the values of its attributes."""
    data = reader.get_metrics_data()
    assert data is not None
    (of_resource,) = data.resource_metrics
    (of_scope,) = of_resource.scope_metrics
    assert of_scope.scope.name == "executor_adapter"
    return {
        (metric.name.removeprefix("executor_adapter."), frozenset(map(str, (point.attributes or {}).values()))): point
        for metric in of_scope.metrics
        for point in metric.data.data_points
    }


def value(points: Points, name: str, *attributes: str) -> float:
    return float(points[name, frozenset(attributes)].value)


def fail() -> None:
    raise DataCollectionException("no", error_code="DATA_ERROR")


def test_jobs_are_counted_and_timed(reader: InMemoryMetricReader) -> None:
    """Ended jobs are counted by status, type, tool and error type, over all executors, with times in seconds."""
    for _ in range(2):
        with JobExecutor(2, config=Settings()) as executor:
            executor.run(Job(function=list, job_type="listing", tool_name="radar"))
            executor.submit(Job(function=fail, retry_attempts=0)).exception()
            executor.submit(Job(function="builtins:int", args=("x",), retry_attempts=1, retry_delay=0.0)).exception()
    points = collected(reader)
    assert value(points, "jobs.ended", "completed", "listing", "radar") == 2
    assert value(points, "jobs.ended", "failed", "job", "DATA_ERROR") == 2
    assert points["jobs.ended", frozenset({"failed", "job", "DATA_ERROR"})].attributes["error.type"] == "DATA_ERROR"
    assert value(points, "job.retries", "job", "EXECUTION_ERROR") == 2
    for name in ("job.duration", "job.queue_time"):
        times = points[name, frozenset({"listing", "radar"})]
        assert times.count == 2
        assert 0 <= times.sum < 30
        assert times.explicit_bounds[:3] == (0.005, 0.02, 0.1), "seconds, not milliseconds"


def test_gauges_show_the_current_state_when_they_are_read(reader: InMemoryMetricReader) -> None:
    """Gauges show the jobs, workers and memory of the moment, and nothing of an executor that is closed."""
    go_on = threading.Event()
    with JobExecutor(2, config=Settings()) as executor:
        jobs = [executor.submit(Job(function=go_on.wait, pool="thread")).job for _ in range(5)]
        wait_for(lambda: sum(job.status is JobStatus.RUNNING for job in jobs) == 2)
        wait_for(lambda: executor.stats().jobs_pending == 3)
        points = collected(reader)
        assert (value(points, "jobs", "running"), value(points, "jobs", "pending")) == (2, 3)
        assert (value(points, "workers_busy"), value(points, "jobs_near_limit")) == (2, 0)
        assert value(points, "longest_running") > 0
        assert 0 < value(points, "memory_left") <= value(points, "memory_limit")
        go_on.set()
    points = collected(reader)
    assert value(points, "jobs", "running") == 0
    assert ("memory_left", frozenset()) not in points


def test_a_forked_process_shows_no_executor_of_its_parent(reader: InMemoryMetricReader) -> None:
    """After a fork the gauges of the child are zero while the parent's job runs."""
    go_on = threading.Event()
    with JobExecutor(1, config=Settings()) as executor:
        job = executor.submit(Job(function=go_on.wait, pool="thread")).job
        wait_for(lambda: job.status is JobStatus.RUNNING)
        child = os.fork()
        if child == 0:
            os._exit(int(value(collected(reader), "jobs", "running")))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert value(collected(reader), "jobs", "running") == 1
        go_on.set()


def test_without_a_meter_provider_nothing_is_counted() -> None:
    """Without a meter provider there is no observer, even if OpenTelemetry is imported."""
    assert meter_in_use() is None
    with JobExecutor(1, config=Settings()) as executor:
        assert supervisor_of(executor).tracker.observers == []
