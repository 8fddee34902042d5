"""Line: the jobs that wait for a slot and for the same beside it, so that what holds up the first holds up them all."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from executor_adapter.job import Job, Shape

LineKey = tuple[str, Shape | None, str | None]
"""A pool, the shape of what each attempt needs beside a slot, and a tool; None for none."""

Turn = tuple[int, float]
"""What lines are sorted by: the priority of the first job (highest first), and when it was queued."""


@dataclass(slots=True, eq=False)
class Line:
    """Holds jobs of one pool, one shape and one tool: higher priority first, then in order of arrival.

    The queue of the dispatcher alone changes it.
    """

    pool: str
    shape: Shape | None
    tool: str | None
    jobs: dict[int, deque[Job]] = field(default_factory=dict)
    """By priority."""
    priorities: list[int] = field(default_factory=list)
    """The priorities of the jobs, lowest first."""
    first: Job = field(init=False)
    """The job that starts next."""
    count: int = 0
    place: object = None
    """Its place among the lines whose first job may be tried; None while that one is held back."""
    wanted: frozenset[Hashable] | None = None
    """What the first job was ever short of, and which is kept for it; None where it is not held up by that."""

    def __iter__(self) -> Iterator[Job]:
        for priority in reversed(self.priorities):
            yield from self.jobs[priority]

    def turn(self) -> Turn:
        """Return what comes first among lines."""
        return -self.first.priority, self.first.live.queued_at
