"""The slots of an executor: how many there are, which may change while it runs."""

from __future__ import annotations

from collections.abc import Mapping

from executor_adapter.executor.capacity import slot_limits
from executor_adapter.job import check_max_workers
from executor_adapter.supervision import Supervisor


class Slots:
    """Gives an executor the attribute `max_workers`."""

    _supervisor: Supervisor

    @property
    def max_workers(self) -> int | Mapping[str, int]:
        """How many attempts may run at once: over all pools, or in each one. May be set at any time, by any thread.

        With a larger number, waiting jobs start at once. With a smaller one, the attempts that run now run to their
        end, and no other one starts until fewer than the new number run.

        Raises:
            ValueError: A number is less than 1, or not an integer, or a name is not that of a pool.
            ExecutorClosedError: It is set in a process that was forked from the executor's.
        """
        limits = self._supervisor.dispatcher.limits
        return dict(limits.of_pool) if limits.of_pool else limits.total

    @max_workers.setter
    def max_workers(self, slots: int | Mapping[str, int]) -> None:
        check_max_workers(slots)
        self._supervisor.check_not_forked()
        self._supervisor.resize(slot_limits(slots))
