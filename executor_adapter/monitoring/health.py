"""HealthMonitor: checks an executor or a scheduler at intervals, and raises alerts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, Self

from executor_adapter.config import MonitoringSettings, Settings
from executor_adapter.job import Job, LimitObserver, NearLimit, size_text
from executor_adapter.pools import MemoryLevel
from executor_adapter.supervision import ExecutorStats

logger = logging.getLogger("executor_adapter.health")

MAX_NEAR = 1000
"""Jobs near a limit that wait for a check; with each further one the oldest is forgotten."""


class AlertKind(StrEnum):
    """The kinds of alerts."""

    STUCK_JOB = "stuck-job"
    """A job has been running for longer than `stuck_after`."""
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

    def add_limit_observer(self, observer: LimitObserver) -> None: ...

    def stats(self, *, window: float = ...) -> ExecutorStats | None: ...


class HealthMonitor:
    """Checks `watched` every `interval` seconds, logs each alert and passes it to each function of `on_alert`.

    There is one alert for each stuck job, and one for a high failure rate or low memory until that has passed. A high
    failure rate is logged as an error, all else as a warning. A check that fails is logged as an
    error too, and the next one is made as usual.

    A job that comes near its max_runtime or deadline (the setting `monitoring.near_limit` of what is watched) is an
    alert at once, not only at the next check; once for each attempt, and once for the deadline.

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
        self._stuck: set[Job] = set()
        self._rate_is_high = False
        self._memory_is_low = False
        self._near: deque[NearLimit] = deque(maxlen=MAX_NEAR)
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._woken = threading.Event()
        self._wake_task: Callable[[], object] | None = None
        self._task: asyncio.Task[None] | None = None
        watched.add_limit_observer(self._on_near_limit)

    def check(self) -> list[Alert]:
        """Check once, and return the new alerts, which have been logged and passed to `on_alert`."""
        stats = self._watched.stats(window=self.settings.window)
        alerts = [*self._near_limits(), *self._stuck_jobs(), *self._high_failure_rate(stats), *self._low_memory(stats)]
        for alert in alerts:
            self._raise_alert(alert)
        return alerts

    def _on_near_limit(self, near: NearLimit) -> None:
        """Wake the checks; called on a supervisor's thread."""
        self._near.append(near)
        self._woken.set()
        if (wake := self._wake_task) is not None:
            with contextlib.suppress(RuntimeError):  # The event loop has ended.
                wake()

    def _near_limits(self) -> Iterator[Alert]:
        limit, now = self._watched.config.monitoring.near_limit or 1.0, self._clock()
        while self._near:
            near = self._near.popleft()
            kind, used = AlertKind.NEAR_LIMIT, near.used / near.of
            yield Alert(kind=kind, message=str(near), value=used, limit=limit, job=near.job, at=now)

    def _stuck_jobs(self) -> Iterator[Alert]:
        now, limit = self._clock(), self.settings.stuck_after
        running = {job: now - job.started_at.timestamp() for job in self._watched.running() if job.started_at}
        stuck = {job for job, seconds in running.items() if seconds > limit}
        fresh, self._stuck = stuck - self._stuck, stuck
        for job in fresh:
            message = f"job {job.job_id} has been running for {running[job]:.0f} s, more than {limit:.0f} s"
            yield Alert(kind=AlertKind.STUCK_JOB, message=message, value=running[job], limit=limit, job=job, at=now)

    def _high_failure_rate(self, stats: ExecutorStats | None) -> Iterator[Alert]:
        limit = self.settings.failure_rate
        rate = None if stats is None or stats.window_jobs < self._min_jobs else stats.failure_rate
        was_high, self._rate_is_high = self._rate_is_high, rate is not None and rate > limit
        if rate is not None and self._rate_is_high and not was_high:
            window = f"the last {self.settings.window:.0f} s"
            message = f"{rate:.0%} of the jobs that ended within {window} failed, more than {limit:.0%}"
            yield Alert(kind=AlertKind.HIGH_FAILURE_RATE, message=message, value=rate, limit=limit, at=self._clock())

    def _low_memory(self, stats: ExecutorStats | None) -> Iterator[Alert]:
        was_low, self._memory_is_low = self._memory_is_low, stats is not None and stats.waits_for_memory
        if stats is not None and self._memory_is_low and not was_low:
            total, left = stats.memory_limit_bytes or 1, stats.memory_left_bytes or 0
            figures = f"{size_text(left)} of {size_text(total)} are left, and {stats.jobs_pending} jobs wait"
            yield Alert(
                kind=AlertKind.LOW_MEMORY,
                message=f"memory is short: {figures}",
                value=1 - left / total,
                limit=1 - MemoryLevel("", total, left).high_margin / total,
                at=self._clock(),
            )

    def _raise_alert(self, alert: Alert) -> None:
        level = logging.ERROR if alert.kind is AlertKind.HIGH_FAILURE_RATE else logging.WARNING
        logger.log(level, "%s", alert.message, extra={"job_id": alert.job.job_id if alert.job else None})
        for callback in self._on_alert:
            try:
                callback(alert)
            except Exception:
                logger.exception("an on_alert callback failed")

    def _check_and_log(self) -> None:
        try:
            self.check()
        except Exception:
            logger.exception("a health check failed")

    def _raise_near_limits(self) -> None:
        for alert in self._near_limits():
            self._raise_alert(alert)

    # --- in a thread ---

    def start(self) -> None:
        """Check now and every `interval` seconds, in a thread. Does nothing if it is started already."""
        if self._thread is None:
            self._stopping.clear()
            self._woken.clear()
            # In this context, since Prefect reads of which flow run the event of an alert is.
            run = copy_context().run
            self._thread = threading.Thread(target=run, args=(self._watch,), name="executor-health", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop checking. Does nothing if it is not started."""
        thread, self._thread = self._thread, None
        self._stopping.set()
        self._woken.set()
        if thread is not None:
            thread.join()

    def _watch(self) -> None:
        while not self._stopping.is_set():
            self._check_and_log()
            next_check = time.monotonic() + self.settings.interval
            while not self._stopping.is_set() and (left := next_check - time.monotonic()) > 0:
                if self._woken.wait(min(left, threading.TIMEOUT_MAX)):
                    self._woken.clear()
                    self._raise_near_limits()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # --- in an event loop ---

    async def run(self) -> None:
        """Check now and every `interval` seconds, until cancelled."""
        woken, loop = asyncio.Event(), asyncio.get_running_loop()
        self._wake_task = functools.partial(loop.call_soon_threadsafe, woken.set)
        while True:
            self._check_and_log()
            next_check = loop.time() + self.settings.interval
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_check):
                    while True:
                        await woken.wait()
                        woken.clear()
                        self._raise_near_limits()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
