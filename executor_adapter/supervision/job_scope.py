"""What somebody may put around a job when it is submitted; the supervisor then drives it as any other."""

from __future__ import annotations

from typing import Any, Protocol

from executor_adapter.pools.base import Assignment


class JobScope(Protocol):
    """What the function of one job sees around it, and who hears what it says. Called on the supervisor's thread."""

    def prepare(self, assignment: Assignment) -> None:
        """Give an attempt its `context` or `scope`, before it goes to a pool. It must be quick and must not raise."""

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        """The function said something: topics and contents are those of `pools.base.PoolSupervisor.on_message`."""
