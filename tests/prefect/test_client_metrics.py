"""The metrics of jobs at the port at which Prefect's client serves its own."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator

import pytest
from prefect import flow
from prefect.settings import PREFECT_CLIENT_METRICS_ENABLED, PREFECT_CLIENT_METRICS_PORT, temporary_settings
from prefect.utilities.services import stop_client_metrics_server

from executor_adapter import Job, JobExecutor
from executor_adapter.config import MonitoringSettings, Settings
from executor_adapter.prefect import job_task, run_jobs
from tests.servers import free_port
from tests.waiting import PATIENCE, wait_for


@pytest.fixture
def port(prefect_api: str) -> Iterator[int]:
    """The port of Prefect's client metrics, which its next flow run opens."""
    port = free_port()
    with temporary_settings({PREFECT_CLIENT_METRICS_ENABLED: True, PREFECT_CLIENT_METRICS_PORT: port}):
        yield port
    stop_client_metrics_server()


def scraped(port: int) -> str:
    """Return what a scrape of the port finds."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as answer:
        return str(answer.read().decode())


# Prefect stops its server without closing the socket.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_prefect_s_client_metrics_port_serves_the_jobs_of_a_flow(port: int) -> None:
    """A scrape of that port during a flow finds its jobs and job tasks, beside Prefect's own metrics."""
    settings = Settings(monitoring=MonitoringSettings(default_registry=True))

    @job_task(pool="thread", job_type="client-metrics-task")
    def collect() -> int:
        return 1

    @flow
    def watched() -> str:
        with JobExecutor(2, config=settings) as executor:
            run_jobs(
                [Job(function=abs, args=(-n,), job_type="client-metrics-job") for n in range(3)], executor=executor
            )
            collect()
            # A job task's value is there a moment before its end is counted.
            return str(wait_for(lambda: "client-metrics-task" in (page := scraped(port)) and page))

    lines = watched().splitlines()
    ended = [
        line for line in lines if line.startswith("executor_adapter_jobs_ended_total") and "client-metrics" in line
    ]
    labels = 'error_code="",job_type="client-metrics-{}",status="completed",tool_name=""'
    assert sorted(ended) == [
        f"executor_adapter_jobs_ended_total{{{labels.format('job')}}} 3.0",
        f"executor_adapter_jobs_ended_total{{{labels.format('task')}}} 1.0",
    ]
    assert 'executor_adapter_jobs{status="running"} 0.0' in lines
    assert "# TYPE prefect_events_emitted_total counter" in lines, "Prefect's own"
