"""The workers of a process pool: hired when needed, with one to spare, and seen off."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.guardian.client import NO_PIDFD, Guardian
from executor_adapter.pools.guardian.worker_handle import WorkerHandle
from executor_adapter.worker.process_tree import resident

logger = logging.getLogger("executor_adapter.process")

START_FAILURES = 3
"""Workers that die in a row before they are ready, until one takes its first assignment with it."""
_LEAVE_PATIENCE = 1.0
"""Seconds for a worker that was told to leave."""
_GUARDIAN_PATIENCE = 2.0
"""Seconds for the guardian to tell of a death that we have seen; the dead tree may be large."""

Farewell = Callable[[WorkerHandle, int, int], None]


class Crew:
    """Hires workers by a guardian and parts from them; implements `launcher.Listener`.

    `on_frames(worker)`: its socket can be read. `on_gone(worker, si_code, si_status)`: it is dead, and so is all it
    started; called once for each, before its descriptors are closed.
    """

    def __init__(
        self,
        supervisor: PoolSupervisor,
        limit: int,
        settings: dict[str, Any],
        *,
        on_frames: Callable[[WorkerHandle], None],
        on_gone: Farewell,
    ) -> None:
        self.start_failures = 0
        self.most_busy = 0
        """Workers that were ever busy at once."""
        self._supervisor = supervisor
        self._limit = limit
        self._settings = settings
        self._on_frames = on_frames
        self._on_gone = on_gone
        self._guardian: Guardian | None = None
        self._members: dict[int, WorkerHandle] = {}
        self._idle: list[WorkerHandle] = []
        self._warming: list[WorkerHandle] = []
        self._serving = 0
        self._closing = False
        self._on_closed: Callable[[], None] | None = None

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._members.values() if worker.pid is not None]

    @property
    def idle(self) -> int:
        return len(self._idle)

    # --- hiring ---

    def take(self) -> WorkerHandle:
        """A worker that has nothing to do, or else a new one.

        Raises:
            OSError: none can be started.
        """
        if self._idle:
            return self._idle.pop()
        return self._warming.pop(0) if self._warming else self._hire()

    def put_back(self, worker: WorkerHandle) -> None:
        """It has nothing to do, and can be given something."""
        if self._serving > self._limit + 1:
            self.dismiss(worker)
        else:
            (self._idle if worker.ready else self._warming).append(worker)

    def keep_spare(self) -> None:
        """Have one worker more than were ever busy at once."""
        if self._serving <= self.most_busy and self._may_hire_spare():
            try:
                self._warming.append(self._hire())
            except OSError as error:
                logger.warning("no spare worker: %s", error)

    def _may_hire_spare(self) -> bool:
        if self._closing or self.start_failures >= START_FAILURES:
            return False
        # A fork would hold up the guardian, which has a death to tell; `gone` comes back to it.
        return not any(worker.kill_wanted for worker in self._members.values())

    def ready(self, worker: WorkerHandle, pid: int) -> None:
        worker.ready = True
        worker.pid = pid
        worker.first_rss = resident(pid)
        self.start_failures = 0
        if worker in self._warming:
            self._warming.remove(worker)
            self._idle.append(worker)

    def _hire(self) -> WorkerHandle:
        if self._guardian is None:
            self._guardian = Guardian(self._supervisor, self, self._settings)
        worker = WorkerHandle(self._supervisor, self._guardian)
        self._members[worker.number] = worker
        self._serving += 1
        self._supervisor.watch(worker.fd, functools.partial(self._on_frames, worker))
        return worker

    # --- parting ---

    def doom(self, worker: WorkerHandle) -> None:
        """Give it nothing more."""
        if not worker.doomed:
            worker.doomed = True
            self._serving -= 1
            for group in (self._idle, self._warming):
                if worker in group:
                    group.remove(worker)

    def dismiss(self, worker: WorkerHandle) -> None:
        """Let a worker that has nothing to do go."""
        self.doom(worker)
        worker.hang_up()
        worker.call_after(_LEAVE_PATIENCE, worker.kill)

    def close(self, on_closed: Callable[[], None]) -> None:
        """Let all go, then the guardian."""
        self._closing = True
        self._on_closed = on_closed
        for worker in list(self._members.values()):
            self.dismiss(worker)
        if self._guardian is not None and not self._guardian.is_up and self._members:
            # It may be importing for long, and would fork them only after that.
            self._guardian.kill()
        self._close_further()

    def _close_further(self) -> None:
        if self._on_closed is None or self._members:
            return
        on_closed, self._on_closed = self._on_closed, None
        if self._guardian is None:
            on_closed()
        else:
            self._guardian.stop(on_closed)

    # --- what the guardian says ---

    def forked(self, number: int, pid: int, pidfd: int) -> None:
        worker = self._members.get(number)
        if worker is not None:
            worker.forked(pid, pidfd, functools.partial(self._on_death_seen, worker))
        elif pidfd != NO_PIDFD:
            os.close(pidfd)

    def lose_touch(self, worker: WorkerHandle) -> None:
        """Its end of the socket is closed: it is dead, or the function closed it, and then it will be."""
        self.doom(worker)
        worker.deafen()
        if not worker.is_forked:
            self._call_later(self._expect_forked, worker)

    def _on_death_seen(self, worker: WorkerHandle) -> None:
        worker.seen_dead()
        self.doom(worker)
        self._call_later(self._expect_gone, worker)

    def _call_later(self, expect: Callable[[WorkerHandle], None], worker: WorkerHandle) -> None:
        # Not by the worker's own timer: a stop sets that anew.
        at = self._supervisor.now() + _GUARDIAN_PATIENCE
        self._supervisor.call_at(at, functools.partial(expect, worker))

    def _expect_forked(self, worker: WorkerHandle) -> None:
        if not worker.is_forked:
            self._expect_gone(worker)

    def _expect_gone(self, worker: WorkerHandle) -> None:
        """A guardian that has not told us (somebody stopped it, say) is no guardian."""
        if worker.number in self._members:
            worker.guardian.kill()

    def gone(self, number: int, si_code: int, si_status: int) -> None:
        worker = self._members.pop(number, None)
        if worker is None:
            return
        if not worker.ready and not worker.let_go:
            self.start_failures += 1
        self.doom(worker)
        self._on_gone(worker, si_code, si_status)
        worker.close()
        self.keep_spare()
        self._close_further()

    def unable(self, number: int, errno: int) -> None:
        worker = self._members.get(number)
        if worker is not None:
            worker.verdict = WorkerCrashedError(f"no process could be started: {os.strerror(errno)}")
            # It was tried for seconds already.
            self.start_failures = max(self.start_failures, START_FAILURES)
            self.gone(number, os.CLD_EXITED, 0)

    def noted(self, text: str) -> None:
        logger.warning("%s", text)

    def guardian_lost(self, lost: Guardian) -> None:
        if self._guardian is lost:
            self._guardian = None
        its_workers = [worker for worker in self._members.values() if worker.guardian is lost]
        logger.warning("the guardian ended with code %s, and its %d workers with it", lost.exit_code, len(its_workers))
        for worker in its_workers:
            worker.let_go = lost.is_up
            if not lost.is_up:
                message = f"the guardian exited with code {lost.exit_code} before it was up: its stderr says why"
                worker.verdict = WorkerCrashedError(message)
            self.gone(worker.number, os.CLD_KILLED, signal.SIGKILL)
        self._close_further()
