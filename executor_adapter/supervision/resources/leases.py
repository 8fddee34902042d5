"""What jobs need of the nodes of a cluster: leases, which their pool obtains by shape."""

from __future__ import annotations

from collections.abc import Callable

from executor_adapter.job import Job, Shape
from executor_adapter.pools import LeasingPool, WorkerPool


class Leases:
    """Keeps free leases for jobs that start, and tells the pools how many they lack. Supervisor thread only."""

    def __init__(self, pool_of: Callable[[Job], WorkerPool]) -> None:
        self._pool_of = pool_of
        self._held: dict[Job, LeasingPool] = {}
        self._demand: dict[tuple[LeasingPool, Shape], int] = {}
        """The demand that each pool knows of."""

    def holds(self, job: Job) -> bool:
        """Return whether a lease is kept for the job, or runs it."""
        return job in self._held

    def are_short(self, job: Job, shape: Shape) -> bool:
        """Return whether there is no free lease for the job."""
        pool = self._leasing_pool(job)
        return pool is not None and not pool.shapes.has_lease(shape)

    def give(self, job: Job, shape: Shape) -> None:
        """Keep a free lease for the job."""
        pool = self._leasing_pool(job)
        if pool is not None:
            pool.shapes.reserve(job, shape)
            self._held[job] = pool

    def release(self, job: Job) -> None:
        """Keep no lease for the job any more, if any was kept."""
        pool = self._held.pop(job, None)
        if pool is not None:
            pool.shapes.unreserve(job)

    def report_demand(self, waiting: dict[tuple[Job, Shape], int]) -> None:
        """Tell the pools for how many attempts of each shape leases are wanted. `waiting`: by one of the jobs."""
        demand = dict.fromkeys(self._demand, 0)
        for (job, shape), count in waiting.items():
            pool = self._leasing_pool(job)
            if pool is not None:
                demand[pool, shape] = count
        for (pool, shape), count in demand.items():
            if self._demand.get((pool, shape), 0) != count:
                pool.shapes.set_demand(shape, count)
        self._demand = {key: count for key, count in demand.items() if count}

    def _leasing_pool(self, job: Job) -> LeasingPool | None:
        """Return the pool of a job; None where it cannot be made, so that its attempt fails in the usual way."""
        try:
            pool = self._pool_of(job)
        except Exception:
            return None
        return pool if isinstance(pool, LeasingPool) else None
