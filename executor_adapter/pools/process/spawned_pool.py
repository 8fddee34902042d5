"""The process pool whose workers are interpreters that the host spawns."""

from __future__ import annotations

import logging
from typing import Any

from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.process.pool import WorkerProcessPool
from executor_adapter.pools.process.spawned_worker import SpawnedWorkerHandle
from executor_adapter.pools.process.spawned_workers import SpawnedWorkers
from executor_adapter.worker import values

logger = logging.getLogger("executor_adapter.process")


class SpawnedPool(WorkerProcessPool[SpawnedWorkerHandle]):
    """Spawned worker processes, each of which imports what is to be preloaded."""

    workers_kind = SpawnedWorkers

    def __init__(self, supervisor: PoolSupervisor, max_workers: int, **options: Any) -> None:
        super().__init__(supervisor, max_workers, **options)
        self._logged: set[str] = set()
        """Warnings of starting workers that are logged already."""

    def _on_message(self, worker: SpawnedWorkerHandle, flags: int, seq: int, body: bytes) -> None:
        if worker.ready:
            super()._on_message(worker, flags, seq, body)
        else:
            self._log_warning(body)

    def _log_warning(self, body: bytes) -> None:
        """Log a warning of a worker that is starting, which belongs to no job; only once, as each worker sends it."""
        (topic, content), _ = values.load_plain(body)
        if topic == "log" and content["level"] >= logging.WARNING and content["message"] not in self._logged:
            self._logged.add(content["message"])
            logger.warning("%s", content["message"])
