"""Alerts reach a real Prefect server as events, and `doctor` reads a real server's settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.models.server.services import ServerServicesTaskRunRecorderSettings as RecorderSettings
from prefect.task_engine import run_task_sync

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.monitoring import Alert, AlertKind, HealthMonitor, ready_checks
from executor_adapter.monitoring.findings import Finding, Level
from executor_adapter.prefect import PrefectMirror, emit_alert, job_task
from executor_adapter.prefect.doctor import checks
from executor_adapter.prefect.mirror import server
from executor_adapter.prefect.mirror.runs import flush_events
from tests.api_server import Answer, as_json, serving
from tests.prefect.conftest import Api
from tests.servers import Server, free_port
from tests.waiting import wait_for


def fail() -> None:
    raise DataCollectionException("no", error_code="DATA_ERROR")


def events_named(server: Server, name: str, since: datetime) -> list[dict[str, Any]]:
    body = {"filter": {"event": {"name": [name]}, "occurred": {"since": since.isoformat()}}}
    found: list[dict[str, Any]] = server.call("POST", "/events/filter", body)["events"]
    return found


@pytest.mark.usefixtures("prefect_api")
def test_alerts_become_events_of_the_server(prefect_api: str) -> None:
    """An alert is an event whose resource is the stuck job or the program, with the value and its limit."""
    server = Server(url=prefect_api.removesuffix("/api"), env={})
    began = datetime.now(UTC)  # Other tests may have raised alerts on this server.
    with JobExecutor(1, config=Settings()) as executor:
        executor.submit(Job(function=fail)).exception()
        (rate,) = HealthMonitor(executor, on_alert=[emit_alert]).check()
    stuck = Job(function=fail, job_id=f"stuck-{time.time()}", tool_name="radar")
    emit_alert(Alert(kind=AlertKind.STUCK_JOB, message="stuck", value=7.0, limit=5.0, job=stuck))
    flush_events(10)
    stuck_job, high_rate = "executor-adapter.health.stuck-job", "executor-adapter.health.high-failure-rate"
    (event,) = wait_for(lambda: events_named(server, stuck_job, began), what="the event")
    assert event["resource"]["prefect.resource.id"] == f"executor-adapter.job.{stuck.job_id}"
    assert event["resource"]["executor-adapter.tool"] == "radar"
    assert event["payload"] == {"message": "stuck", "value": 7.0, "limit": 5.0}
    (event,) = wait_for(lambda: events_named(server, high_rate, began), what="the event")
    assert event["payload"]["message"] == rate.message
    assert event["resource"]["prefect.resource.id"].startswith("executor-adapter.program.")


def by_name(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_doctor_warns_of_a_recorder_with_default_settings(api: Api) -> None:
    """Doctor warns of a recorder with default settings, and shows how to start the server instead."""

    def with_default_recorder(path: str, _: Any) -> Answer:
        answer = api.get(path.removeprefix("/api"))
        if path.endswith("/admin/settings"):
            recorder = answer["server"]["services"]["task_run_recorder"]
            assert recorder["batch_size"] == 500
            recorder |= {name: field.default for name, field in RecorderSettings.model_fields.items()}
        return as_json(answer)

    with serving(with_default_recorder) as (url, _), temporary_settings({PREFECT_API_URL: f"{url}/api"}):
        found = by_name(checks())
    assert found["prefect server"].level is Level.FINE
    assert found["task run recorder"].level is Level.WARNING
    assert "batch_size=1: the server records about 50 task runs a second" in found["task run recorder"].found
    assert "_BATCH_SIZE=500" in found["task run recorder"].way_out


def test_doctor_accepts_a_tuned_recorder(prefect_api: str) -> None:
    """Doctor accepts a recorder that writes many events in a transaction."""
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        assert by_name(checks())["task run recorder"].level is Level.FINE
        assert ready_checks["prefect server"]() is None


def run_observed() -> None:
    with PrefectMirror() as mirror, JobExecutor(1, observers=[mirror]) as executor:
        executor.run(Job(function=dict, pool="thread"))


def run_as_a_task_worker() -> None:
    """Run a job task in Prefect's own engine, which reports it without a mirror."""
    with JobExecutor(1):
        run_task_sync(job_task(lambda: None, name="untested", pool="thread"))


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("run", [run_observed, run_as_a_task_worker])
def test_a_prefect_that_is_newer_than_was_tested_is_said_once(
    run: Callable[[], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says it once in a process, whatever runs jobs first."""
    monkeypatch.setattr(server, "NEWEST_TESTED", (3, 5))
    server.warn_of_untested_prefect.cache_clear()
    for _ in range(2):
        run()
    assert caplog.text.count("is newer than 3.5, the newest that executor_adapter was tested with") == 1


@pytest.mark.parametrize(
    ("version", "is_newer"),
    [
        ("3.10rc1", True),
        ("3.10.dev1+2.g6f1c9a7", True),
        ("4", True),
        ("3.9rc1", False),
        ("0+unknown", False),
        ("?", False),
    ],
)
def test_no_version_of_prefect_keeps_the_mirror_from_starting(
    version: str, is_newer: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Versions before a release, and of an unpacked archive, are compared as far as they have numbers."""
    server.warn_of_untested_prefect.cache_clear()
    server.warn_of_untested_prefect(version)
    assert ("is newer than" in caplog.text) is is_newer


def test_doctor_reports_a_server_that_does_not_answer() -> None:
    """A server that does not answer is an error for doctor, not a warning, and programs are not ready without it."""
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        found = by_name(checks())["prefect server"]
        assert ready_checks["prefect server"]() == found.found
    assert found.level is Level.WRONG
    assert "does not answer" in found.found


def test_doctor_explains_the_embedded_server(tmp_path: Path) -> None:
    """Doctor explains that each flow starts a server of its own if no API URL is set."""
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert (
            by_name(checks())["prefect server"].found
            == "PREFECT_API_URL is not set: each flow starts an embedded server"
        )
