"""What is still to be told of one task run, whoever drives it: the supervisor or an engine of Prefect's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from executor_adapter.prefect.mirror.state_events import FlowRunFacts, StateEvent

Step = TypeVar("Step")
"""What happened, as it is noted at once."""


class TaskRunHistory(ABC, Generic[Step]):
    """The steps of one task run that are not told yet. They are told, or left out, in their order."""

    __slots__ = ("is_over", "job_id", "unsent")

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.unsent: tuple[Step, ...] = ()  # a few at most, and often none: the empty tuple is there already
        self.is_over = False

    @abstractmethod
    def add(self, step: Step) -> None:
        """Note one more step, to be told."""

    @abstractmethod
    def tell(self, step: Step, flow: FlowRunFacts) -> StateEvent:
        """The event of a step, which is the next."""

    @abstractmethod
    def pass_over(self, step: Step) -> None:
        """Do without the event of a step, which is the next."""

    def tell_next(self, flow: FlowRunFacts) -> StateEvent:
        """The event of the first unsent step, which then is told."""
        step, *later = self.unsent
        self.unsent = tuple(later)
        return self.tell(step, flow)

    def leave_out_passed(self) -> int:
        """Forget the unsent steps that a final one has overtaken; how many."""
        passed = self.unsent[:-1]
        for step in passed:
            self.pass_over(step)
        self.unsent = self.unsent[-1:]
        return len(passed)
