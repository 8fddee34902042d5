"""What the pools of all engines share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.cluster.engines.leases import Engine, EngineLeases, LeaseEnds
from executor_adapter.pools.cluster.pool import RemotePool


class EnginePool(RemotePool):
    """Runs attempts on the nodes of an engine's cluster; without an address, on a local one that it starts."""

    can_keep: ClassVar[bool] = True

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        address: str | None = None,
        listen_host: str | None = None,
        resources: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        def make_source(pool: RemotePool) -> EngineLeases:
            return EngineLeases(pool, lambda ends: self.make_engine(ends, address, resources, max_workers), listen_host)

        super().__init__(supervisor, max_workers, make_source, **options)

    @staticmethod
    @abstractmethod
    def make_engine(ends: LeaseEnds, address: str | None, resources: Mapping[str, float] | None, slots: int) -> Engine:
        """Return the client of the cluster at `address`, with leases that take `resources`."""
