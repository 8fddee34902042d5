"""The unsent part of one task run's history, whether the supervisor or one of Prefect's engines drives the task run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from executor_adapter.prefect.mirror.state_events import FlowRunFacts, StateEvent

Step = TypeVar("Step")
"""One state change, in the form in which it is stored until it is sent."""


class TaskRunHistory(ABC, Generic[Step]):
    """The unsent state changes of one task run. They are turned into events, or skipped, in their order."""

    __slots__ = ("is_finished", "job_id", "unsent")

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.unsent: tuple[Step, ...] = ()  # A tuple, since it is short and the empty one takes no memory.
        self.is_finished = False

    @abstractmethod
    def add(self, step: Step) -> None:
        """Append a state change."""

    @abstractmethod
    def event_of(self, step: Step, flow: FlowRunFacts) -> StateEvent:
        """Return the event of a step, which must be the next one."""

    @abstractmethod
    def skip(self, step: Step) -> None:
        """Take account of a step, which must be the next one, without an event."""

    def next_event(self, flow: FlowRunFacts) -> StateEvent:
        """Remove the first unsent step and return its event."""
        step, *later = self.unsent
        self.unsent = tuple(later)
        return self.event_of(step, flow)

    def skip_intermediate(self) -> int:
        """Skip all unsent steps but the last, and return how many they were."""
        intermediate = self.unsent[:-1]
        for step in intermediate:
            self.skip(step)
        self.unsent = self.unsent[-1:]
        return len(intermediate)
