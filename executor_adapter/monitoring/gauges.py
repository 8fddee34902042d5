"""The figures of this moment, over all executors of the process, that the metrics show as gauges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from executor_adapter.supervision import ExecutorStats

Values = dict[str, float]
"""A gauge's values by the value of its label; "" where it has none. Empty where nothing is known."""


class Measured(Protocol):
    """Something whose figures are exported; its stats are None once it is closed."""

    def stats(self) -> ExecutorStats | None: ...


class Gauge(NamedTuple):
    """A figure of this moment."""

    name: str
    """Its name, without the package's; it ends in its unit."""
    text: str
    read: Callable[[Sequence[ExecutorStats]], Values]
    """Returns its values, of the stats of the executors that are open."""
    label: str | None = None
    """The name of its label."""


def stats_of(executors: Iterable[Measured]) -> list[ExecutorStats]:
    """Return the stats of the executors that are open. Any thread may call it."""
    return [stats for executor in tuple(executors) if (stats := executor.stats()) is not None]


def _jobs(stats: Sequence[ExecutorStats]) -> Values:
    return {
        "pending": sum(each.jobs_pending for each in stats),
        "running": sum(each.jobs_running for each in stats),
        "retrying": sum(each.jobs_retrying for each in stats),
    }


def _sum_of(figure: Callable[[ExecutorStats], float]) -> Callable[[Sequence[ExecutorStats]], Values]:
    return lambda stats: {"": sum(map(figure, stats))}


def _longest(stats: Sequence[ExecutorStats]) -> Values:
    return {"": max((each.longest_running_seconds or 0.0 for each in stats), default=0.0)}


def _memory(place: int) -> Callable[[Sequence[ExecutorStats]], Values]:
    """Return what reads the memory that is left (0) or its limit (1) where it is scarcest."""

    def read(stats: Sequence[ExecutorStats]) -> Values:
        pairs = [(each.memory_left_bytes, each.memory_limit_bytes) for each in stats]
        known = [(left / limit, left, limit) for left, limit in pairs if left is not None and limit]
        return {"": min(known)[1 + place]} if known else {}

    return read


GAUGES = (
    Gauge("jobs", "Jobs that have not ended.", _jobs, "status"),
    Gauge("jobs_near_limit", "Jobs near their max_runtime or deadline.", _sum_of(lambda s: s.jobs_near_limit)),
    Gauge("workers_busy", "Workers that run a job.", _sum_of(lambda s: s.workers_busy)),
    Gauge("abandoned_threads", "Threads that could not be stopped.", _sum_of(lambda s: s.abandoned_threads)),
    Gauge("quarantined_jobs", "Jobs that killed too many workers.", _sum_of(lambda s: len(s.quarantined))),
    Gauge("waiting_for_memory", "Executors held by short memory.", _sum_of(lambda s: s.waits_for_memory)),
    Gauge("memory_left_bytes", "Memory that is left.", _memory(0)),
    Gauge("memory_limit_bytes", "The limit of the memory that is left.", _memory(1)),
    Gauge("longest_running_seconds", "Seconds of the longest running attempt.", _longest),
)
