"""Workers that the host spawns itself, each an interpreter of its own."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any, ClassVar

from executor_adapter.pools.base import PoolSupervisor, Timer
from executor_adapter.pools.process.handle import Launcher, WorkerHandle, WorkerProcess, start_interpreter
from executor_adapter.pools.process.pool import ProcessPool
from executor_adapter.pools.process.workers import WorkerSet
from executor_adapter.worker.process import INTERRUPT

_MIN_CHECK_INTERVAL, MAX_CHECK_INTERVAL = 0.001, 1.0
"""Seconds between two checks whether a worker has died: once its exit is expected, longer the longer it takes."""
_GROUP_EXIT_TIMEOUT = 1.0
"""Seconds to wait for what a dead worker left in its process group, once it is killed: the system may be slow."""


class SpawnedProcess(WorkerProcess):
    """A process that the host has started.

    `on_exit(returncode)` is called once, when it has exited and nothing of its process group is alive.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], supervisor: PoolSupervisor, on_exit: Callable[[int], None]
    ) -> None:
        self.pid = process.pid
        self._process = process
        self._supervisor = supervisor
        self._on_exit = on_exit
        self._check_interval = MAX_CHECK_INTERVAL
        self._exit_check: Timer | None = None
        self._group_wait_until: float | None = None
        self._schedule_check()

    def kill(self) -> None:
        self._signal_group(signal.SIGKILL)
        self.expect_exit()

    def terminate(self) -> None:
        self._signal_group(signal.SIGTERM)

    def interrupt(self) -> None:
        if self._process.returncode is None:  # Until then no other process can have its pid.
            os.kill(self._process.pid, INTERRUPT)

    def _signal_group(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _check_exit(self) -> None:
        """Report the exit if the process and its whole group have exited; otherwise check again later."""
        if self._process.poll() is not None and self._is_group_empty():
            self._on_exit(self._process.returncode)
        else:
            self._schedule_check()

    def expect_exit(self) -> None:
        """Look often from now on whether it has exited."""
        self._check_interval = _MIN_CHECK_INTERVAL
        self._schedule_check()

    def _schedule_check(self) -> None:
        if self._exit_check is not None:
            self._exit_check.cancel()
        self._exit_check = self._supervisor.call_at(self._supervisor.now() + self._check_interval, self._check_exit)
        self._check_interval = min(2 * self._check_interval, MAX_CHECK_INTERVAL)

    def _is_group_empty(self) -> bool:
        """Kill what is left of the process group, whose id stays in use as long as a process is in it."""
        now = time.monotonic()
        if self._group_wait_until is None:
            self._group_wait_until = now + _GROUP_EXIT_TIMEOUT
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # Some systems raise the second if only zombies are left.
            return True
        return now >= self._group_wait_until

    def close(self) -> None:
        if self._exit_check is not None:
            self._exit_check.cancel()


class SpawnLauncher(Launcher):
    """Spawns workers, and looks for their ends."""

    spawns: ClassVar[bool] = True

    def __init__(self, supervisor: PoolSupervisor, settings: dict[str, Any], workers: WorkerSet) -> None:
        self._supervisor = supervisor
        self._settings = settings
        self._workers = workers

    def launch(self, worker: WorkerHandle, fds: list[int]) -> SpawnedProcess:
        try:
            started = start_interpreter("spawned", fds, self._settings, stdout=fds[2], stderr=fds[3])
        finally:
            for fd in fds:
                os.close(fd)
        on_exit = functools.partial(self._workers.on_worker_exit, worker.number)
        process = SpawnedProcess(started, self._supervisor, on_exit)
        preload = ", ".join(self._settings["preload"])
        what = f"worker {process.pid} imports preload={preload} and runs the initializer, if any"
        self._workers.watch_start(worker, what)
        return process


class SpawnPool(ProcessPool):
    """Worker processes that the host spawns, each of which imports what is to be preloaded."""

    def make_launcher(self, settings: dict[str, Any], workers: WorkerSet) -> SpawnLauncher:
        return SpawnLauncher(self.supervisor, settings, workers)
