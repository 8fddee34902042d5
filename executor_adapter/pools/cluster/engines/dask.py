"""Leases on a Dask cluster: each is a small task that holds a slot of a worker, where an agent runs the attempts.

Dask places the leases, counts them, and sees their number as demand, so an adaptive cluster grows and shrinks with it.
No attempt is a task of Dask's. So neither its retries nor its work stealing concern one.
"""

from __future__ import annotations

from typing import Any, ClassVar

from executor_adapter.exceptions.display import text_of
from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.cluster.engines.dask_worker import hold_lease
from executor_adapter.pools.cluster.engines.leases import Engine, EngineLeases, LeaseEnds
from executor_adapter.pools.cluster.pool import RemotePool


class DaskPool(RemotePool):
    """Runs attempts on the workers of a Dask cluster; without an address, on a local one that it starts."""

    name: ClassVar[str] = "dask"

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        address: str | None = None,
        listen_host: str | None = None,
        resources: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        def make_source(pool: RemotePool) -> EngineLeases:
            return EngineLeases(pool, lambda ends: DaskCluster(ends, address, resources, max_workers), listen_host)

        super().__init__(supervisor, max_workers, make_source, **options)


class DaskCluster(Engine):
    """The client of a Dask cluster, and the cluster itself where it is a local one."""

    name = "Dask"

    def __init__(self, ends: LeaseEnds, address: str | None, resources: dict[str, float] | None, slots: int) -> None:
        self._ends = ends
        self._address = address
        self._resources = resources
        self._slots = slots
        self._local: Any = None
        self._client: Any = None
        self._futures: dict[int, Any] = {}
        """The tasks that are not done, by the number of their lease."""

    def connect(self) -> str:
        import distributed  # Only here: programs that do not use it need not have it.

        engine: Any = distributed
        target: Any = self._address or self._local
        if self._client is not None:  # Its scheduler was lost.
            self._client.close(timeout=0)
        if target is None:
            # Its workers are threads of this program: they hold leases, and run no code of a job.
            self._local = target = engine.LocalCluster(
                n_workers=1,
                threads_per_worker=self._slots,
                processes=False,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
            )
        self._client = engine.Client(target, set_as_default=False, name="executor-adapter")
        scheduler = str(self._client.scheduler.address)
        if scheduler.startswith("tls:"):
            raise ConnectionError(f"{scheduler} uses TLS, which pool='dask' cannot: use one without it")
        return scheduler

    def ask(self, head: dict[str, Any], lease: int) -> None:
        if self._client is None or self._client.status != "running":
            self.connect()
        future = self._futures[lease] = self._client.submit(
            hold_lease,
            head,
            lease,
            key=f"executor-adapter-lease-{head['token'][:8]}-{lease}",
            pure=False,
            retries=0,
            resources=self._resources,
        )
        future.add_done_callback(lambda done: self._ends.call(lambda: self._note_end(lease, done)))

    def _note_end(self, lease: int, future: Any) -> None:
        if self._futures.get(lease) is future:
            del self._futures[lease]
        if future.status == "error":
            error = future.exception()
            is_final = isinstance(error, ImportError)
            hint = ": install prefect-executor-adapter on the workers" if is_final else ""
            why = f"{type(error).__name__}: {text_of(error)}{hint}"
        else:
            is_final, why = False, future.result() if future.status == "finished" else ""
        self._ends.lease_ended(lease, why, is_final=is_final)

    def drop(self, lease: int) -> None:
        future = self._futures.pop(lease, None)
        if future is not None:
            self._client.cancel([future], force=True)

    def release(self, lease: int) -> None:
        """Do nothing: its task ends when the agent hears of it."""

    def close(self) -> None:
        if self._futures:
            self._client.cancel(list(self._futures.values()), force=True)
        self._futures.clear()
        for each in (self._client, self._local):
            if each is not None:
                each.close()
