"""The workers that the host spawns itself, each an interpreter of its own."""

from __future__ import annotations

from collections.abc import Callable

from executor_adapter.pools.base import Timer
from executor_adapter.pools.process.spawned_worker import SpawnedWorkerHandle
from executor_adapter.pools.process.workers import WorkerSet

LIVENESS_INTERVAL = 1.0
"""Seconds between two checks whether busy workers live."""


class SpawnedWorkers(WorkerSet[SpawnedWorkerHandle]):
    """Spawns workers, and looks for their ends."""

    _liveness_check: Timer | None = None

    def _launch(self) -> SpawnedWorkerHandle:
        worker = SpawnedWorkerHandle(self._supervisor, self._buffer, self._settings, self.on_worker_exit)
        preload = ", ".join(self._settings["preload"])
        self._watch_start(worker, f"worker {worker.pid} imports preload={preload} and runs the initializer, if any")
        return worker

    def take(self, memory_limit: int | None, *, new: bool = False) -> SpawnedWorkerHandle:
        self._watch_busy()
        return super().take(memory_limit, new=new)

    def _on_disconnected(self, worker: SpawnedWorkerHandle) -> None:
        worker.expect_exit()

    def _end_launching(self, on_closed: Callable[[], None]) -> None:
        if self._liveness_check is not None:
            self._liveness_check.cancel()
        on_closed()

    def _watch_busy(self) -> None:
        """Check regularly whether busy workers live, as long as there are any."""
        if self._liveness_check is None:
            at = self._supervisor.now() + LIVENESS_INTERVAL
            self._liveness_check = self._supervisor.call_at(at, self._check_liveness)

    def _check_liveness(self) -> None:
        self._liveness_check = None
        for worker in self.members:
            if worker.queue and worker.has_exited():
                worker.check_exit()
        if any(worker.queue for worker in self._members.values()):
            self._watch_busy()
