"""Waits for an answer in a process that may itself be paused meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from executor_adapter.pools.base import PoolSupervisor, Timer

STEPS = 4
"""Parts into which the time is divided."""


class Patience:
    """Calls `give_up` when an answer has not come within `seconds` in which this process could have received it.

    The time passes in STEPS parts, and each part begins when the supervisor has just run. So however long this process
    is paused (a function holds the GIL, the container is frozen), the pause uses up one part: what has arrived by its
    end is read, and an answering side that was paused too still has the other parts.
    """

    def __init__(self, supervisor: PoolSupervisor, seconds: float, give_up: Callable[[], None]) -> None:
        self._supervisor = supervisor
        self._step = seconds / STEPS
        self._give_up = give_up
        self._left = STEPS
        self._wait()

    def _wait(self) -> None:
        self._timer: Timer = self._supervisor.call_at(self._supervisor.now() + self._step, self._on_step)

    def _on_step(self) -> None:
        self._left -= 1
        if self._left:
            self._wait()
        else:
            self._give_up()

    def cancel(self) -> None:
        """Do not wait any longer, and do not call `give_up`."""
        self._timer.cancel()
