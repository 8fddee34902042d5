"""The set of a process pool's workers: starts them when needed, with one to spare, and retires them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable
from typing import Any

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.base import PoolSupervisor, Timer
from executor_adapter.pools.patience import Patience
from executor_adapter.pools.process.handle import Launcher, WorkerHandle

logger = logging.getLogger("executor_adapter.process")

MAX_START_FAILURES = 3
"""Workers that may die in a row before they are ready. The last of them takes its first assignment with it."""

WARN_AFTER = 10.0
"""Seconds after which a start is warned of."""

_RECEIVE_SIZE = 1 << 18
"""Bytes that are received at once."""

_MAX_LEFT_BEHIND = 0.5
"""Share of a memory limit that earlier jobs of the worker may already hold. Much of it may be modules that they
imported, and a new worker that had to import them again would take far longer."""

GiveUp = Callable[[WorkerUnavailableError], None]


class StartWatch:
    """Watches what is starting: each has `limit` seconds, or any time if that is None.

    One warning covers all that hang, since they do so for the same reason.
    """

    def __init__(self, supervisor: PoolSupervisor, limit: float | None) -> None:
        self._supervisor = supervisor
        self._limit = limit
        self._warn_after = WARN_AFTER if limit is None else min(WARN_AFTER, limit / 2)
        self._starting: dict[Hashable, list[Timer]] = {}
        """What is starting, with the times at which it is warned of and given up."""
        self._has_warned = False

    def add(self, who: Hashable, what: str, give_up: GiveUp) -> None:
        """Watch `who`, which is starting now; `what` says in words what it does until it is ready."""
        warning_due = self._supervisor.now() + self._warn_after
        self._starting[who] = [self._supervisor.call_at(warning_due, lambda: self._warn(what))]
        if self._limit is not None:
            patience = Patience(self._supervisor, self._limit, lambda: self._on_limit(who, what, give_up))
            self._starting[who].append(patience)

    def remove(self, who: Hashable) -> None:
        """Watch `who` no longer: it is ready, or has ended."""
        for timer in self._starting.pop(who, ()):
            timer.cancel()
        self._has_warned = self._has_warned and bool(self._starting)

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            then = "no limit is set" if self._limit is None else f"they fail after start_timeout={self._limit} s"
            logger.warning("%s, and is not ready after %.3g s; jobs wait for it: %s", what, self._warn_after, then)

    def _on_limit(self, who: Hashable, what: str, give_up: GiveUp) -> None:
        self.remove(who)
        limit = f"start_timeout={self._limit} s: mend that, or raise executor.start_timeout"
        give_up(WorkerUnavailableError(f"{what}, and was not ready within {limit}"))


class WorkerSet:
    """Starts workers with its launcher, which sees their ends, and retires them.

    `on_frames(worker)` is called when a worker's socket is readable. `on_exit(worker, returncode)` is called once for
    each worker, when it and what it started is dead, and before its descriptors are closed.
    """

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        settings: dict[str, Any],
        start_timeout: float | None,
        *,
        make_launcher: Callable[[dict[str, Any], WorkerSet], Launcher],
        on_frames: Callable[[WorkerHandle], Any],
        on_exit: Callable[[WorkerHandle, int | None], None],
    ) -> None:
        self.start_failures = 0
        self.peak_busy = 0
        """The most workers that were ever busy at once."""
        self.serving = 0
        """Number of workers that are not retired."""
        self.members: dict[int, WorkerHandle] = {}
        """All workers that have not exited, by number, the retired ones included."""
        self.idle: list[WorkerHandle] = []
        """Workers that are ready and have no assignment."""
        self.start_watch = StartWatch(supervisor, start_timeout)
        self.is_refused = False
        """Whether the system refused the last worker, so that only a job may ask for another."""
        self.closing = False
        self.launcher = make_launcher(settings, self)
        self._supervisor = supervisor
        # Shared: the supervisor's thread reads the workers, and uses up what it read before it reads again. Pools of
        # several executors must not, since a thread that has read may wait for the GIL while another one reads.
        self._buffer = bytearray(_RECEIVE_SIZE)
        self._max_workers = max_workers
        self._on_frames = on_frames
        self._on_exit = on_exit
        self._starting: list[WorkerHandle] = []
        """Workers without assignments that are not ready yet."""
        self._on_closed: Callable[[], None] | None = None

    # --- starting ---

    def take(self, memory_limit: int | None, *, new: bool = False) -> WorkerHandle:
        """Return a worker without assignments, or else a new one.

        With a memory limit, it is a worker in which earlier jobs left little: the next job must not be killed for them.
        With `new`, it is one that has run none.

        Raises:
            OSError: no worker can be started.
        """
        if new:
            return self._take_new()
        worker = self._take_any()
        while memory_limit is not None and worker.left_behind() > _MAX_LEFT_BEHIND * memory_limit:
            self.shut_down(worker)
            worker = self._take_any()
        return worker

    def _take_new(self) -> WorkerHandle:
        for worker in self.idle:
            if not worker.jobs_done:
                self.idle.remove(worker)
                return worker
        if self.idle and self.serving > self._max_workers:
            self.shut_down(self.idle[0])
        return self._starting.pop(0) if self._starting else self._start()

    def _take_any(self) -> WorkerHandle:
        if self.idle:
            return self.idle.pop()
        return self._starting.pop(0) if self._starting else self._start()

    def put_back(self, worker: WorkerHandle) -> None:
        """Keep a worker that has no assignments for later, or shut it down if there are enough."""
        if self.serving > self._max_workers + 1:
            self.shut_down(worker)
        else:
            (self.idle if worker.ready else self._starting).append(worker)

    def keep_spare(self) -> None:
        """Start workers until there is one more than were ever busy at once."""
        may_start = not (self.closing or self.is_refused or self.start_failures >= MAX_START_FAILURES)
        if self.serving <= self.peak_busy and may_start and self.launcher.may_start_spare():
            try:
                self._starting.append(self._start())
            except OSError as error:
                self.is_refused = True
                logger.warning("no spare worker can be started: %s", error)

    def _start(self) -> WorkerHandle:
        worker = WorkerHandle(self._supervisor, self._buffer, self.launcher)
        self.members[worker.number] = worker
        self.serving += 1
        self._supervisor.watch(worker.fd, functools.partial(self._on_frames, worker))
        return worker

    def watch_start(self, worker: WorkerHandle, what: str) -> None:
        """Give up the worker unless it is ready in time; `what` says in words what it does until then."""
        self.start_watch.add(worker, what, functools.partial(self._on_start_timeout, worker))

    def _on_start_timeout(self, worker: WorkerHandle, error: WorkerUnavailableError) -> None:
        worker.crash_cause = error
        self.retire(worker)
        worker.kill()

    def on_ready(self, worker: WorkerHandle, pid: int) -> None:
        """Take note that a worker has started."""
        self.start_watch.remove(worker)
        self.is_refused = False
        worker.on_ready(pid)
        self.start_failures = 0
        if worker in self._starting:
            self._starting.remove(worker)
            self.put_back(worker)

    # --- retiring ---

    def retire(self, worker: WorkerHandle) -> None:
        """Assign nothing more to the worker."""
        if not worker.retired:
            worker.retired = True
            self.serving -= 1
            for group in (self.idle, self._starting):
                if worker in group:
                    group.remove(worker)

    def shut_down(self, worker: WorkerHandle) -> None:
        """Retire a worker that has no assignments, and let it exit."""
        self.retire(worker)
        if worker.ready or not self.launcher.spawns:
            worker.request_exit()
        else:
            worker.kill()  # It has run no function that might clean up.

    def resize(self, max_workers: int) -> None:
        """Keep workers for so many busy ones and one to spare; idle ones beyond that are shut down."""
        self._max_workers = max_workers
        self.peak_busy = min(self.peak_busy, max_workers)
        while self.idle and self.serving > max_workers + 1:
            self.shut_down(self.idle[-1])

    def on_disconnect(self, worker: WorkerHandle) -> None:
        """Retire a worker whose socket is closed: it has died, or its function closed it and it is about to exit."""
        self.retire(worker)
        worker.stop_listening()
        worker.process.expect_exit()

    def on_worker_exit(self, number: int, returncode: int | None) -> None:
        """Report that a worker has exited; the code is that of `subprocess.Popen.returncode`; None: it never began."""
        worker = self.members.pop(number, None)
        if worker is None:
            return
        self.start_watch.remove(worker)
        if not worker.ready and not worker.exit_expected:
            self.start_failures += 1
        self.retire(worker)
        self._on_exit(worker, returncode)
        worker.close()
        self.keep_spare()
        self._continue_closing()

    def close(self, on_closed: Callable[[], None]) -> None:
        """Shut down all workers and what launches them; then call `on_closed`."""
        self.closing = True
        self._on_closed = on_closed
        for worker in list(self.members.values()):
            self.shut_down(worker)
        self._continue_closing()
        self.launcher.begin_closing()

    def _continue_closing(self) -> None:
        if self._on_closed is not None and not self.members:
            on_closed, self._on_closed = self._on_closed, None
            self.launcher.close(on_closed)
