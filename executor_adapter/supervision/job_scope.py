"""Defines what a caller may set up around a job when it submits it."""

from __future__ import annotations

from typing import Any, Protocol

from executor_adapter.pools import Assignment


class JobScope(Protocol):
    """Sets up what the function of one job sees around it, and receives its messages. Supervisor thread only."""

    def prepare(self, assignment: Assignment) -> None:
        """Give an attempt its `context` or `scope` before it goes to a pool. It must be quick and must not raise."""

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        """Receive a message of the function: topics and contents are those of `PoolSupervisor.on_message`."""
