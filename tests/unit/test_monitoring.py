"""ExecutorStats and HealthMonitor: what is measured of jobs, and when an alert is raised."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

import pytest

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import MonitoringSettings, Settings
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.job import NearLimit
from executor_adapter.monitoring import Alert, AlertKind, HealthMonitor, health
from executor_adapter.scheduler import CollectionScheduler
from executor_adapter.supervision.outcome import MAX_ENDED_JOBS, EndedJob, StateTracker, figures, percentile
from executor_adapter.testing import FakeClock, InlineExecutor
from tests.waiting import PATIENCE, wait_for

DONE, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED


def fail() -> None:
    raise DataCollectionException("no", error_code="DATA_ERROR")


def run_all(executor: JobExecutor, function: Callable[[], object], count: int) -> None:
    for future in [executor.submit(Job(function=function)) for _ in range(count)]:
        future.exception()


# --- figures ---


def test_figures_are_of_the_window_alone() -> None:
    """Jobs that ended before the window count in no rate and no duration."""
    ended: list[EndedJob] = [(100.0, FAILED, 0.0, 50.0), (900.0, DONE, 899.0, 1.0), (950.0, FAILED, 947.0, 3.0)]
    found = figures(ended, now=1000.0, window=200.0)
    assert found == {
        "window": 200.0,
        "window_jobs": 2,
        "failure_rate": 0.5,
        "job_seconds_mean": 2.0,
        "job_seconds_p50": 1.0,
        "job_seconds_p95": 3.0,
        "queue_seconds_mean": 2.0,
        "queue_seconds_p95": 3.0,
    }


def test_a_cancelled_job_is_no_failure_and_one_that_never_started_took_no_time() -> None:
    """Cancelled jobs are not failures, and jobs that never started have no duration."""
    ended: list[EndedJob] = [(900.0, CANCELLED, None, None), (900.0, DONE, 899.0, 0.0)]
    found = figures(ended, now=1000.0, window=200.0)
    assert (found["window_jobs"], found["failure_rate"], found["job_seconds_mean"]) == (1, 0.0, 1.0)


def test_without_jobs_rates_and_durations_are_none() -> None:
    """Without jobs the rates and durations are None."""
    found = figures([], now=1000.0, window=200.0)
    assert {value for name, value in found.items() if not name.startswith("window")} == {None}


def test_a_percentile_is_a_value_that_was_seen() -> None:
    """A percentile is one of the measured values."""
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.95), percentile(values, 1.0)) == (50.0, 95.0, 100.0)
    assert percentile([7.0], 0.95) == 7.0


def test_memory_of_what_ended_is_bounded() -> None:
    """The number of remembered ended jobs is bounded."""
    ended = StateTracker(()).ended
    ended.extend((float(n), DONE, 0.0, 0.0) for n in range(3 * MAX_ENDED_JOBS))
    assert len(ended) == MAX_ENDED_JOBS


def test_an_executor_measures_its_jobs() -> None:
    """`stats` of an executor counts its jobs and measures their times."""
    with JobExecutor(1, config=Settings()) as executor:
        run_all(executor, lambda: time.sleep(0.02), 3)
        run_all(executor, fail, 1)
        stats = executor.stats()
    assert (stats.success_rate, stats.failure_rate, stats.window_jobs) == (0.75, 0.25, 4)
    assert stats.job_seconds_p95 is not None
    assert stats.job_seconds_p95 >= 0.02
    assert stats.queue_seconds_p95 is not None
    assert stats.queue_seconds_p95 >= 0.02, "the second waits for the first"


def test_what_runs_is_known_with_its_time() -> None:
    """`running` and `longest_running_seconds` show the running attempts."""
    go_on = threading.Event()
    with JobExecutor(1, config=Settings()) as executor:
        job = executor.submit(Job(function=go_on.wait)).job
        waiting = executor.submit(Job(function=fail)).job
        wait_for(lambda: job.status is JobStatus.RUNNING)
        assert executor.running() == [job]
        wait_for(lambda: executor.stats().jobs_pending == 1)
        assert executor.stats().longest_running_seconds is not None
        go_on.set()
        wait_for(lambda: waiting.status.is_terminal)
        assert executor.stats().longest_running_seconds is None
        assert executor.running() == []


# --- health ---


class Clock:
    """A wall clock that a test moves."""

    moved = 0.0

    def __call__(self) -> float:
        return time.time() + self.moved


def test_a_stuck_job_gives_one_alert(caplog: pytest.LogCaptureFixture) -> None:
    """A stuck job gives one warning, and another stuck job a new one."""
    go_on, clock, alerts = threading.Event(), Clock(), list[Alert]()
    with JobExecutor(2, config=Settings()) as executor:
        job = executor.submit(Job(function=go_on.wait, job_id="stuck")).job
        wait_for(lambda: job.status is JobStatus.RUNNING)
        monitor = HealthMonitor(executor, on_alert=[alerts.append], clock=clock)
        assert monitor.check() == []
        clock.moved = 3601.0
        (alert,) = monitor.check()
        assert (alert.kind, alert.job, alert.limit) == (AlertKind.STUCK_JOB, job, 3600.0)
        assert alert.value >= 3601.0
        assert monitor.check() == []
        go_on.set()
        wait_for(lambda: job.status.is_terminal)
        assert monitor.check() == []
    assert alerts == [alert]
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.WARNING, alert.message)
    assert alert.message.startswith("job stuck has been running for 360")


def test_a_retried_job_is_not_stuck_before_its_attempt_is() -> None:
    """Earlier attempts, and the delays of retries, do not make a job stuck."""
    job = Job(function=fail, job_id="retried")
    job.advance(JobStatus.RUNNING, ago=5000.0)
    job.advance(JobStatus.RETRYING)
    job.advance(JobStatus.RUNNING)
    clock = Clock()

    class Watched:
        config = Settings()

        def running(self) -> list[Job]:
            return [job]

        def stats(self, *, window: float = 1.0) -> None: ...

        def near_limits(self) -> list[NearLimit]:
            return []

    monitor = HealthMonitor(Watched(), clock=clock)
    assert monitor.check() == []
    clock.moved = 3601.0
    assert [alert.kind for alert in monitor.check()] == [AlertKind.STUCK_JOB]


def test_a_high_failure_rate_gives_one_alert(caplog: pytest.LogCaptureFixture) -> None:
    """A high failure rate gives one alert, and another only after it was lower."""
    with JobExecutor(2, config=Settings()) as executor:
        monitor = HealthMonitor(executor)
        assert monitor.check() == [], "no job, no rate"
        run_all(executor, list, 1)
        run_all(executor, fail, 1)
        assert monitor.check() == [], "half is not more than half"
        run_all(executor, fail, 1)
        (alert,) = monitor.check()
        assert alert.message == "67% of the jobs that ended within the last 3600 s failed, more than 50%"
        assert (alert.kind, alert.value, alert.job) == (AlertKind.HIGH_FAILURE_RATE, pytest.approx(2 / 3), None)
        assert monitor.check() == []
        run_all(executor, list, 5)
        assert monitor.check() == []
        run_all(executor, fail, 9)
        assert len(monitor.check()) == 1
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def test_a_rate_of_too_few_jobs_is_none() -> None:
    """A failure rate of fewer jobs than `min_jobs` gives no alert."""
    with JobExecutor(1, config=Settings()) as executor:
        monitor = HealthMonitor(executor, min_jobs=3)
        run_all(executor, fail, 2)
        assert monitor.check() == []
        run_all(executor, fail, 1)
        assert len(monitor.check()) == 1


def test_a_callback_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """A failing on_alert callback is logged, and the others are called."""
    alerts: list[Alert] = []

    def broken(alert: Alert) -> None:
        raise OSError("no one there")

    with JobExecutor(1, config=Settings()) as executor:
        run_all(executor, fail, 1)
        HealthMonitor(executor, on_alert=[broken, alerts.append]).check()
    assert len(alerts) == 1
    assert "an on_alert callback failed" in caplog.text


def test_a_callback_may_stop_the_monitor(caplog: pytest.LogCaptureFixture) -> None:
    """An on_alert callback that stops the monitor goes on after that, and no further check follows."""
    threads: list[threading.Thread] = []

    def stop(alert: Alert) -> None:
        monitor.stop()
        threads.append(threading.current_thread())

    with JobExecutor(1, config=Settings()) as executor:
        run_all(executor, fail, 1)
        monitor = HealthMonitor(executor, on_alert=[stop])
        monitor.start()
        wait_for(lambda: threads or "callback failed" in caplog.text)
    assert "callback failed" not in caplog.text
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()


def test_limits_come_from_the_settings_unless_given() -> None:
    """Limits come from the settings unless they are passed as arguments."""
    settings = MonitoringSettings(stuck_after=5.0, interval=7.0)
    with JobExecutor(1, config=Settings()) as executor:
        monitor = HealthMonitor(executor, settings=settings, interval=9.0)
    assert (monitor.settings.stuck_after, monitor.settings.interval, monitor.settings.failure_rate) == (5.0, 9.0, 0.5)


def test_the_settings_are_those_of_what_is_watched() -> None:
    """Without settings of its own a monitor uses those of what it watches."""
    config = Settings(monitoring=MonitoringSettings(stuck_after=5.0, failure_rate=0.9))
    with JobExecutor(1, config=config) as executor:
        monitors = [HealthMonitor(executor), HealthMonitor(CollectionScheduler(config=config), failure_rate=0.1)]
    assert [(m.settings.stuck_after, m.settings.failure_rate) for m in monitors] == [(5.0, 0.9), (5.0, 0.1)]


def test_it_checks_in_a_thread_until_it_is_stopped(caplog: pytest.LogCaptureFixture) -> None:
    """A monitor checks in a thread until it is stopped, also after a failed check."""
    looks: list[float] = []

    class Watched:
        config = Settings()

        def running(self) -> list[Job]:
            looks.append(time.monotonic())
            raise RuntimeError("not now")

        def stats(self, *, window: float = 1.0) -> None: ...

        def near_limits(self) -> list[NearLimit]:
            return []

    monitor = HealthMonitor(Watched(), interval=0.01)
    with monitor:
        monitor.start()
        wait_for(lambda: len(looks) >= 3)
    seen = len(looks)
    monitor.stop()
    assert "executor-health" not in {thread.name for thread in threading.enumerate()}
    assert len(looks) == seen
    assert "a health check failed" in caplog.text


def test_it_checks_in_an_event_loop_until_its_block_is_left() -> None:
    """A monitor of a scheduler checks in the event loop until its block is left."""
    alerts: list[Alert] = []

    async def main() -> None:
        others = asyncio.all_tasks()
        scheduler = CollectionScheduler(config=Settings())
        async with HealthMonitor(scheduler, interval=0.01, on_alert=[alerts.append]):
            await scheduler.start()
            await scheduler.add_manual_job("collection", fail)
            while not alerts:
                await asyncio.sleep(0.005)
        scheduler.close()
        assert asyncio.all_tasks() == others

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert alerts[0].kind is AlertKind.HIGH_FAILURE_RATE


# --- limits that are near ---


def test_a_deadline_is_near_also_while_the_job_waits() -> None:
    """A deadline is near while the job waits for its retry, and an alert once."""
    clock, alerts = FakeClock(), list[Alert]()
    with InlineExecutor(clock=clock) as executor:
        monitor = HealthMonitor(executor, on_alert=[alerts.append])
        future = executor.submit(
            Job(function=fail_by_network, deadline=100.0, retry_attempts=9, retry_delay=90.0, job_id="late")
        )
        clock.advance(79.0)
        assert executor.near_limits() == []
        clock.advance(2.0)
        (near,) = executor.near_limits()
        assert executor.stats().jobs_near_limit == 1
        assert str(near) == "job late has used 81 s of its deadline of 100 s: 19 s are left"
        for _ in range(3):
            monitor.check()
        assert [alert.message for alert in alerts] == [str(near)]
        clock.advance(30.0)
        assert future.exception() is not None
        assert (executor.near_limits(), executor.stats().jobs_near_limit) == ([], 0)


def test_a_deadline_counts_from_the_submit_after_a_retry_too() -> None:
    """A retry begins to wait anew, and its job's deadline does not."""
    with InlineExecutor(clock=FakeClock()) as executor:
        executor.submit(Job(function=fail_by_network, deadline=100.0, retry_attempts=9, retry_delay=30.0))
        executor.clock.advance(85.0)
        (near,) = executor.near_limits()
        assert (near.limit, near.used) == ("deadline", 85.0)
        executor.clock.advance(15.0)


def fail_by_network() -> None:
    raise ConnectionError


@pytest.mark.parametrize("near_limit", [None, 0.5])
def test_the_share_of_a_limit_is_a_setting(near_limit: float | None) -> None:
    """`monitoring.near_limit` sets when a limit is near; null turns it off. One that has passed is not near."""
    clock, near = FakeClock(), list[tuple[str, float, int]]()

    def take(seconds: float) -> None:
        clock.advance(seconds)
        near.extend((each.limit, each.used, each.attempt) for each in executor.near_limits())

    config = Settings(monitoring=MonitoringSettings(near_limit=near_limit))
    with InlineExecutor(clock=clock, config=config) as executor:
        for seconds in (6.0, 4.0):
            executor.run(Job(function=take, args=(seconds,), max_runtime=10.0, deadline=100.0))
        late = Job(function=take, args=(60.0,), max_runtime=10.0, deadline=20.0, retry_attempts=0)
        assert executor.submit(late).exception() is not None
    assert near == ([] if near_limit is None else [("max_runtime", 6.0, 1)])


def test_each_attempt_that_is_near_its_limit_is_an_alert() -> None:
    """A second attempt is another one, also where both are near their limits at two looks in a row."""
    clock, alerts = FakeClock(), list[Alert]()

    def look_and_fail() -> None:
        clock.advance(9.0)
        monitor.check()
        monitor.check()
        raise ConnectionError

    with InlineExecutor(clock=clock) as executor:
        monitor = HealthMonitor(executor, on_alert=[alerts.append], stuck_after=1e9)
        job = Job(function=look_and_fail, max_runtime=10.0, retry_attempts=1, retry_delay=0.0)
        future = executor.submit(job)
        clock.advance(1.0)
        assert isinstance(future.exception(), ConnectionError)
    assert [alert.kind for alert in alerts] == [AlertKind.NEAR_LIMIT] * 2


def test_a_job_near_its_limit_is_an_alert_soon(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor in a thread raises an alert when a limit is near, long before its next check."""
    monkeypatch.setattr(health, "LOOK_INTERVAL", 0.02)
    alerts, counts, go_on = list[Alert](), list[int](), threading.Event()

    def on_alert(alert: Alert) -> None:
        alerts.append(alert)
        counts.append(executor.stats().jobs_near_limit)
        go_on.set()

    with JobExecutor(1, config=Settings()) as executor:
        with HealthMonitor(executor, interval=3600, on_alert=[on_alert]):
            executor.run(Job(function=go_on.wait, pool="thread", max_runtime=2.0, job_id="slow"))
        counts.append(executor.stats().jobs_near_limit)
    assert counts == [1, 0]
    (alert,) = alerts
    assert (alert.kind, alert.limit, alert.job and alert.job.job_id) == (AlertKind.NEAR_LIMIT, 0.8, "slow")
    assert 0.8 <= alert.value < 1.0
    assert alert.message.startswith("job slow has used 1.6")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_scheduler_s_job_near_its_limit_is_an_alert_in_its_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A monitor of a scheduler raises the alert in the event loop, for each executor that it makes."""
    monkeypatch.setattr(health, "LOOK_INTERVAL", 0.02)
    alerts: list[Alert] = []

    async def main() -> None:
        scheduler = CollectionScheduler(config=Settings.model_validate({"collection": {"job_timeout": 1.0}}))
        async with HealthMonitor(scheduler, interval=3600, on_alert=[alerts.append]):
            for count in (1, 2):
                await scheduler.start()
                await scheduler.add_manual_job("collection", asyncio.sleep, delay=30)
                while len(alerts) < count:
                    await asyncio.sleep(0.005)
                scheduler.close()

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    assert {alert.kind for alert in alerts} == {AlertKind.NEAR_LIMIT}
