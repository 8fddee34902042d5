"""The unsent part of one task run's history, whether the supervisor or one of Prefect's engines drives the task run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from executor_adapter.prefect.mirror.state_events import Change, FlowRunFacts, StateEvent, event_body

Step = TypeVar("Step")
"""One state change, in the form in which it is stored until it is sent."""


class TaskRunHistory(ABC, Generic[Step]):
    """The unsent state changes of one task run. They are turned into events, or skipped, in their order."""

    __slots__ = ("id", "is_finished", "job_id", "unsent")

    def __init__(self, task_run_id: str, job_id: str) -> None:
        self.id = task_run_id
        self.job_id = job_id
        self.unsent: tuple[Step, ...] = ()  # A tuple, since it is short and the empty one takes no memory.
        self.is_finished = False

    @abstractmethod
    def add(self, step: Step) -> None:
        """Append a state change."""

    @abstractmethod
    def change_of(self, step: Step, flow: FlowRunFacts) -> Change:
        """Return what the event of a step is made of, which must be the next one."""

    def related(self, flow: FlowRunFacts) -> str:
        """Return the resources that the events are related to; see `event_body`."""
        return flow.related

    @abstractmethod
    def skip(self, step: Step) -> None:
        """Take account of a step, which must be the next one, without an event."""

    def next_event(self, flow: FlowRunFacts) -> StateEvent:
        """Remove the first unsent step and return its event."""
        step, *later = self.unsent
        self.unsent = tuple(later)
        change = self.change_of(step, flow)
        body = event_body(self.id, change, self.related(flow))
        return StateEvent(
            *(self.id, change.state.name, change.at, change.is_final, body, self.job_id), flow_run_id=flow.id
        )

    def skip_intermediate(self) -> int:
        """Skip all unsent steps but the last, and return how many they were."""
        intermediate = self.unsent[:-1]
        for step in intermediate:
            self.skip(step)
        self.unsent = self.unsent[-1:]
        return len(intermediate)
