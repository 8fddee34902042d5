"""HealthMonitor: checks an executor or a scheduler at intervals, and raises alerts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from executor_adapter.config import MonitoringSettings, Settings
from executor_adapter.job import Job, NearLimit, size_text
from executor_adapter.pools.memory.available import MemoryLevel
from executor_adapter.supervision.outcome import ExecutorStats

logger = logging.getLogger("executor_adapter.health")

LOOK_INTERVAL = 1.0
"""Seconds between two looks for jobs near a limit."""


class AlertKind(StrEnum):
    """The kinds of alerts."""

    STUCK_JOB = "stuck-job"
    """An attempt of a job has been running for longer than `stuck_after`."""
    NEAR_LIMIT = "near-limit"
    """A job has used the share `near_limit` of its max_runtime or deadline, and ends at it unless it is done before."""
    HIGH_FAILURE_RATE = "high-failure-rate"
    """A larger share than `failure_rate` of the jobs that ended within the window failed."""
    LOW_MEMORY = "low-memory"
    """Memory is so short that no further attempt starts while one runs, see the setting `executor.memory`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something needs attention: `value` (seconds, or a share) exceeds `limit`."""

    kind: AlertKind
    message: str
    value: float
    limit: float
    job: Job | None = None
    """The job that is stuck or near its limit; None for another kind."""
    at: float = field(default_factory=time.time)
    """Seconds since the epoch."""


class Watched(Protocol):
    """Something that can be checked: a JobExecutor, CollectionScheduler or ProcessingScheduler."""

    @property
    def config(self) -> Settings: ...

    def running(self) -> Sequence[Job]: ...

    def near_limits(self) -> Sequence[NearLimit]: ...

    def stats(self, *, window: float = ...) -> ExecutorStats | None: ...


class HealthMonitor:
    """Checks `watched` every `interval` seconds, logs each alert and passes it to each function of `on_alert`.

    There is one alert for each stuck job, and one for a high failure rate or low memory until that has passed. A high
    failure rate is logged as an error, all else as a warning. A check that fails is logged as an
    error too, and the next one is made as usual.

    A job that comes near its max_runtime or deadline (the setting `monitoring.near_limit` of what is watched) is an
    alert within LOOK_INTERVAL, not only at the next check; once for each attempt, and once for the deadline.

        with HealthMonitor(executor, on_alert=[page_someone]):          # checks in a thread of its own
        async with HealthMonitor(scheduler, stuck_after=600):           # checks in the running event loop

    `settings` has the values of parameters that are left out; default: the section `monitoring` of what is watched.
    `min_jobs`: with fewer ended jobs in the window the failure rate is ignored. `clock`: seconds since the epoch.
    """

    def __init__(
        self,
        watched: Watched,
        *,
        stuck_after: float | None = None,
        failure_rate: float | None = None,
        window: float | None = None,
        interval: float | None = None,
        min_jobs: int = 1,
        on_alert: Sequence[Callable[[Alert], object]] = (),
        settings: MonitoringSettings | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        given = {"stuck_after": stuck_after, "failure_rate": failure_rate, "window": window, "interval": interval}
        base = (settings or watched.config.monitoring).model_dump()
        self.settings = MonitoringSettings(**base | {key: value for key, value in given.items() if value is not None})
        self._watched = watched
        self._min_jobs = min_jobs
        self._on_alert = tuple(on_alert)
        self._clock = clock
        self._known: dict[AlertKind, Collection[object]] = {}
        """What was wrong at the last look for each kind."""
        self._check_at = -math.inf
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._task: asyncio.Task[None] | None = None

    def check(self) -> list[Alert]:
        """Check once, and return the new alerts, which have been logged and passed to `on_alert`."""
        stats = self._watched.stats(window=self.settings.window)
        return [
            *self._raise_new(AlertKind.NEAR_LIMIT, self._near_limits()),
            *self._raise_new(AlertKind.STUCK_JOB, self._stuck_jobs()),
            *self._raise_new(AlertKind.HIGH_FAILURE_RATE, self._high_failure_rate(stats)),
            *self._raise_new(AlertKind.LOW_MEMORY, self._low_memory(stats)),
        ]

    # --- what is wrong now: each alert with what tells it apart from others of its kind ---

    def _near_limits(self) -> Iterator[tuple[object, Alert]]:
        kind, share = AlertKind.NEAR_LIMIT, self._watched.config.monitoring.near_limit or 1.0
        for near in self._watched.near_limits():
            used = near.used / near.of
            alert = Alert(kind=kind, message=str(near), value=used, limit=share, job=near.job, at=self._clock())
            yield (near.job, near.limit, near.attempt), alert

    def _stuck_jobs(self) -> Iterator[tuple[object, Alert]]:
        now, limit = self._clock(), self.settings.stuck_after
        for job in self._watched.running():
            if (lasts := now - (job.state.attempt_started_at or now)) > limit:
                message = f"job {job.job_id} has been running for {lasts:.0f} s, more than {limit:.0f} s"
                yield job, Alert(kind=AlertKind.STUCK_JOB, message=message, value=lasts, limit=limit, job=job, at=now)

    def _high_failure_rate(self, stats: ExecutorStats | None) -> Iterator[tuple[object, Alert]]:
        kind, limit = AlertKind.HIGH_FAILURE_RATE, self.settings.failure_rate
        rate = None if stats is None or stats.window_jobs < self._min_jobs else stats.failure_rate
        if rate is not None and rate > limit:
            window = f"the last {self.settings.window:.0f} s"
            message = f"{rate:.0%} of the jobs that ended within {window} failed, more than {limit:.0%}"
            yield kind, Alert(kind=kind, message=message, value=rate, limit=limit, at=self._clock())

    def _low_memory(self, stats: ExecutorStats | None) -> Iterator[tuple[object, Alert]]:
        if stats is not None and stats.waits_for_memory:
            kind = AlertKind.LOW_MEMORY
            total, left = stats.memory_limit_bytes or 1, stats.memory_left_bytes or 0
            figures = f"{size_text(left)} of {size_text(total)} are left, and {stats.jobs_pending} jobs wait"
            message, limit = f"memory is short: {figures}", 1 - MemoryLevel("", total, left).high_margin / total
            yield kind, Alert(kind=kind, message=message, value=1 - left / total, limit=limit, at=self._clock())

    def _raise_new(self, kind: AlertKind, wrong: Iterable[tuple[object, Alert]]) -> list[Alert]:
        """Raise and return the alerts of what was not wrong at the last look for this kind."""
        found, known = dict(wrong), self._known.get(kind, ())
        self._known[kind] = set(found)
        new = [alert for key, alert in found.items() if key not in known]
        for alert in new:
            self._raise_alert(alert)
        return new

    def _raise_alert(self, alert: Alert) -> None:
        level = logging.ERROR if alert.kind is AlertKind.HIGH_FAILURE_RATE else logging.WARNING
        logger.log(level, "%s", alert.message, extra={"job_id": alert.job.job_id if alert.job else None})
        for callback in self._on_alert:
            try:
                callback(alert)
            except Exception:
                logger.exception("an on_alert callback failed")

    def _look(self) -> float:
        """Check if it is time to, else look for jobs near a limit; return the seconds until the next look."""
        try:
            if (now := time.monotonic()) >= self._check_at:
                self._check_at = now + self.settings.interval
                self.check()
            else:
                self._raise_new(AlertKind.NEAR_LIMIT, self._near_limits())
        except Exception:
            logger.exception("a health check failed")
        return max(0.0, min(LOOK_INTERVAL, self._check_at - time.monotonic()))

    # --- in a thread ---

    def start(self) -> None:
        """Check now and every `interval` seconds, in a thread. Does nothing if it is started already."""
        if self._thread is None:
            self._stopping.clear()
            self._check_at = -math.inf
            # In this context, since Prefect reads of which flow run the event of an alert is.
            run = copy_context().run
            self._thread = threading.Thread(target=run, args=(self._watch,), name="executor-health", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop checking. Does nothing if it is not started. A function of `on_alert` may call it."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(self._look()):
            pass

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- in an event loop ---

    async def run(self) -> None:
        """Check now and every `interval` seconds, until cancelled."""
        self._check_at = -math.inf
        while True:
            await asyncio.sleep(self._look())

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
