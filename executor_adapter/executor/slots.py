"""The slots of an executor: how many there are, which may change while it runs, and how an attempt lends its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from executor_adapter.job import check_count
from executor_adapter.pools import Assignment
from executor_adapter.supervision import Supervisor


class Slots:
    """Gives an executor the attribute `max_workers`, and lends the slots of its attempts."""

    _supervisor: Supervisor

    @property
    def max_workers(self) -> int:
        """How many attempts may run at once, over all pools. May be set at any time, by any thread.

        With a larger number, waiting jobs start at once. With a smaller one, the attempts that run now run to their
        end, and no other one starts until fewer than the new number run.

        Raises:
            ValueError: The number is less than 1, or not an integer.
            ExecutorClosedError: It is set in a process that was forked from the executor's.
        """
        return self._supervisor.dispatcher.max_workers

    @max_workers.setter
    def max_workers(self, number: int) -> None:
        check_count("max_workers", number, "leaves no worker")
        self._supervisor.check_not_forked()
        # Set at once, so that no further attempt starts when this has returned.
        self._supervisor.dispatcher.max_workers = number
        self._supervisor.call_soon(self._supervisor.pools.resize, number)

    @contextlib.contextmanager
    def lent_slot(self, assignment: Assignment) -> Iterator[None]:
        """Free the slot of a running attempt while the block waits for another job. Any thread may call it."""
        starting = self._supervisor.starting
        self._supervisor.call_soon(starting.lend_slot_of, assignment)
        try:
            yield
        finally:
            self._supervisor.call_soon(starting.take_slot_back_of, assignment)
