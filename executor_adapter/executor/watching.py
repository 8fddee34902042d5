"""What can be seen of an executor: its transitions, the limits that are near, its figures and its metrics."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from executor_adapter.executor.html import html_of_executor
from executor_adapter.executor.live_stats import live_stats
from executor_adapter.job import LimitObserver, Observer
from executor_adapter.supervision import DEFAULT_WINDOW_SECONDS, ExecutorStats, HookedExecution, Supervisor

if TYPE_CHECKING:
    from executor_adapter.monitoring import MetricsPort

CATCH_UP_SECONDS = 10.0
"""Max seconds that `remove_observer` waits for a supervisor blocked by an observer."""


class Watching:
    """Gives an executor its observers, figures and metrics."""

    _supervisor: Supervisor
    _hooked: HookedExecution | None
    _metrics: MetricsPort | None

    def add_observer(self, observer: Observer) -> None:
        """Call `observer` with each transition from now on, as one of `observers`."""
        self._supervisor.tracker.observers.append(observer)

    def remove_observer(self, observer: Observer) -> None:
        """Stop calling `observer`, once it has got every transition up to now; it need not have been added.

        A caller that has seen a job end may call this before the executor is done with the job: the engine that drives
        a job reports its end a moment earlier.
        """
        self._supervisor.thread.catch_up(CATCH_UP_SECONDS)
        with contextlib.suppress(ValueError):
            self._supervisor.tracker.observers.remove(observer)

    def add_limit_observer(self, observer: LimitObserver) -> None:
        """Call `observer` with a NearLimit once for each limit that a job comes near to.

        A limit is near when the share `monitoring.near_limit` of it is used. It counts once for each attempt, and a
        deadline once. A HealthMonitor makes alerts of it.
        """
        self._supervisor.near_limits.observers.append(observer)

    def remove_limit_observer(self, observer: LimitObserver) -> None:
        """Stop calling `observer`; it need not have been added."""
        with contextlib.suppress(ValueError):
            self._supervisor.near_limits.observers.remove(observer)

    def stats(self, *, window: float = DEFAULT_WINDOW_SECONDS) -> ExecutorStats:
        """Return counts since the executor was made, and figures of jobs that ended in the last `window` seconds."""
        abandoned = 0 if self._hooked is None else self._hooked.abandoned
        return live_stats(self._supervisor, abandoned_attempts=abandoned, window=window)

    def _repr_html_(self) -> str:
        return html_of_executor(self)

    @property
    def metrics_url(self) -> str | None:
        """Where Prometheus finds the metrics; None where none are served at `monitoring.metrics_port`."""
        return None if self._metrics is None else self._metrics.url
