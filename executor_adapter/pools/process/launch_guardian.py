"""Workers that a guardian forks: the host's side of it, and of the processes of its workers."""

from __future__ import annotations

import array
import contextlib
import functools
import logging
import math
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from executor_adapter.exceptions import MemoryLimitError, NodeLostError, WorkerUnavailableError
from executor_adapter.pools.base import Assignment, PoolSupervisor, unavailable
from executor_adapter.pools.patience import Patience
from executor_adapter.pools.process.handle import Launcher, WorkerHandle, WorkerProcess, start_interpreter
from executor_adapter.pools.process.memory_watch import MemoryWatch, largest_attempt
from executor_adapter.pools.process.pool import ProcessPool
from executor_adapter.pools.process.workers import WorkerSet
from executor_adapter.pools.transport.send_buffer import SendBuffer
from executor_adapter.worker import guardian, wire
from executor_adapter.worker.process import INTERRUPT
from executor_adapter.worker.process_tree import TREE_VARIABLE, kill_below, kill_marked, resident, tree_resident
from executor_adapter.worker.wire import lease_time

logger = logging.getLogger("executor_adapter.process")

NO_PIDFD = -1
_OWN_EXIT = -1
"""Stands for the guardian itself, where the number of a worker is expected."""

_EXIT_TIMEOUT = 1.0
"""Seconds after which a guardian that was asked to exit is killed."""
_REPLY_TIMEOUT = wire.REFUSED_TIMEOUT + 2
"""Seconds to wait for the guardian's report of a fork, which it tries for long, or of a death that the host saw.

What the worker has left may be gigabytes, and takes seconds to die on a busy machine.
"""
_FORK_SECONDS = 0.1
"""Seconds that the fork of a worker may take, for those that are asked for next."""
_SWEEP_INTERVAL = 0.005
_MIN_CLEAN_SWEEPS = 3
"""Sweeps in a row that must find no process: one sweep may miss a process that a dying parent starts meanwhile."""
_SWEEP_TIMEOUT = 5.0
_LARGE_IDLE_WORKER = 32 << 20
"""Bytes that earlier jobs left in an idle worker, from which on it is ended when memory is short."""


class _ForkedEnds:
    """A worker's ends of its descriptors. They are closed when nobody holds this any more."""

    def __init__(self, fds: list[int]) -> None:
        self.fds = tuple(fds)

    def __del__(self) -> None:  # `weakref.finalize` stops before executors do, at the end of the interpreter.
        _close(self.fds)


class GuardianClient:
    """One guardian process. `settings` go to it and to each worker unchanged.

    Raises:
        OSError: the guardian cannot be started.
    """

    def __init__(self, supervisor: PoolSupervisor, launcher: GuardianLauncher, settings: dict[str, Any]) -> None:
        self.is_ready = False
        """Whether the guardian has imported the modules to preload."""
        self.kill_reason: str | None = None
        """Why this process killed it, if it did."""
        self._start_error: WorkerUnavailableError | None = None
        self._supervisor = supervisor
        self._launcher = launcher
        self._token = secrets.token_hex(16)
        self._due: dict[int, Patience | None] = {}
        """The workers of which a report is due, each with what kills the guardian where that does not come."""
        self._is_dead = False
        self._on_stopped: Callable[[], None] | None = None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = start_interpreter(
                    "guardian",
                    [theirs.fileno()],
                    settings,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, TREE_VARIABLE: self._token},
                )
            self._pidfd = self._open_pidfd()
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()
        self._send_buffer = SendBuffer(supervisor, self._socket)
        supervisor.watch(self.fd, self.receive)
        supervisor.watch(self._pidfd, self._on_exit)

    def _open_pidfd(self) -> int:
        try:
            return os.pidfd_open(self._process.pid)
        except OSError:  # Nobody could see its end.
            self._process.kill()
            self._process.wait()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def end(self) -> str:
        """How it ended without being asked to, as a clause."""
        if self.kill_reason is not None:
            return f"the guardian (process {self.pid}) was killed by this program because {self.kill_reason}"
        early = "" if self.is_ready else " before it was ready: see its stderr"
        return f"the guardian (process {self.pid}) ended with code {self._process.returncode}{early}"

    # --- requests ---

    def fork(self, number: int, fds: list[int]) -> None:
        """Ask for a worker with these descriptors, which are closed once they are sent."""
        self.expect_report(number)
        self._send(guardian.FORK, number, forked=_ForkedEnds(fds))

    def terminate_worker(self, number: int) -> None:
        """Send SIGTERM to the worker and its process group."""
        self._send(guardian.TERMINATE, number)

    def kill_worker(self, number: int) -> None:
        """Send SIGKILL to a worker without a pidfd. The guardian must report its exit in time."""
        self.expect_report(number)
        self._send(guardian.KILL, number)

    def set_lease(self, until: float) -> None:
        """Let the workers run until this `lease_time`, unless a later one is sent by then."""
        self._send(guardian.LEASE, 0, repr(until).encode())

    def kill(self, reason: str) -> None:
        """Kill a guardian that does not answer, with everything below it; `on_guardian_lost` follows."""
        if self._pidfd >= 0:
            self.kill_reason = self.kill_reason or reason
            # The workers die with the guardian, but a process with an environment of its own cannot be found then.
            with contextlib.suppress(OSError):  # No descriptor is left to read /proc with.
                kill_below(self._process.pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def give_up(self, error: WorkerUnavailableError) -> None:
        """Kill a guardian that takes too long to be ready; its workers' jobs fail with `error`."""
        self._start_error = error
        self.kill("it was not ready in time")

    def failure(self) -> WorkerUnavailableError | None:
        """Return the error of one worker of a guardian that was given up."""
        return None if self._start_error is None else WorkerUnavailableError(self._start_error.message)

    def stop(self, on_stopped: Callable[[], None]) -> None:
        """Let the guardian exit, when it has no workers left, by closing the socket; then call `on_stopped`."""
        self._on_stopped = on_stopped
        if not self._is_dead:
            with contextlib.suppress(OSError):  # It has died, and its pidfd has not been read yet.
                self._socket.shutdown(socket.SHUT_RDWR)
            self._expect(_OWN_EXIT, _EXIT_TIMEOUT, "it did not exit when it was asked to")

    def expect_report(self, number: int) -> None:
        """Kill the guardian if it has not reported on this worker in time, whatever it says of others.

        It may be stopped by a signal. It forks one worker after another, so those asked for before add to the time.
        Before it is ready there is no limit, since its imports may take any time.
        """
        if self.is_ready:
            reason = f"it did not report on a worker for {_REPLY_TIMEOUT:.0f} s"
            self._expect(number, _REPLY_TIMEOUT + _FORK_SECONDS * len(self._due), reason)
        else:
            self._due[number] = None

    def _expect(self, number: int, seconds: float, reason: str) -> None:
        self._cancel_kill(number)
        self._due[number] = Patience(self._supervisor, seconds, lambda: self.kill(reason))

    def _cancel_kill(self, number: int) -> None:
        if (patience := self._due.pop(number, None)) is not None:
            patience.cancel()

    def _send(self, kind: int, number: int, text: bytes = b"", forked: _ForkedEnds | None = None) -> None:
        if not self._is_dead:  # Otherwise `on_guardian_lost` follows, and reports the worker too.
            packet = guardian.PACKET.pack(kind, number, 0, 0) + text
            self._send_buffer.send(packet, () if forked is None else forked.fds, forked)

    # --- reports ---

    def receive(self) -> None:
        """Receive all reports that have arrived, and pass them to the launcher."""
        while self._receive_one():
            pass

    def _receive_one(self) -> bool:
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(
                guardian.MAX_PACKET_SIZE, guardian.FD_SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError:
            packet, ancillary = b"", []
        if not packet:
            self._is_dead = True
            self._supervisor.unwatch(self.fd)
            return False
        kind, number, first, second = guardian.PACKET.unpack_from(packet)
        self._cancel_kill(number)
        if kind == guardian.FORKED:
            pidfd = array.array("i", ancillary[0][2])[0] if ancillary else NO_PIDFD
            self._launcher.on_worker_forked(number, first, pidfd)
        elif kind == guardian.EXITED:
            self._launcher.workers.on_worker_exit(number, second if first == os.CLD_EXITED else -second)
        elif kind == guardian.FORK_FAILED:
            self._launcher.on_fork_failed(number, first)
        elif kind == guardian.EXPIRED:
            self._launcher.on_lease_expired()
        elif kind == guardian.LOG:
            logger.warning("%s", packet[guardian.PACKET.size :].decode(errors="replace"))
        elif kind == guardian.READY:
            self._on_ready()
        return True

    def _on_ready(self) -> None:
        self.is_ready = True
        self._launcher.workers.start_watch.remove(self)
        for number in tuple(self._due):
            self.expect_report(number)

    # --- exit ---

    def _on_exit(self) -> None:
        self.receive()
        self._is_dead = True
        self._process.wait()
        self._supervisor.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._supervisor.unwatch(self.fd)
        self._socket.close()
        self._send_buffer.discard()
        for number in tuple(self._due):
            self._cancel_kill(number)
        if self._process.returncode == 0 and self._on_stopped is not None:  # It exited by itself and left nothing.
            self._report_exit()
        else:
            self._sweep(self._supervisor.now() + _SWEEP_TIMEOUT)

    def _sweep(self, until: float, clean: int = 0) -> None:
        """Kill what is left below a dead guardian: its workers die with it, but not what they started."""
        try:
            clean = 0 if kill_marked(self._token) else clean + 1
        except OSError:  # No descriptor is left to read /proc with.
            clean = 0
        now = self._supervisor.now()
        if clean < _MIN_CLEAN_SWEEPS and now < until:
            self._supervisor.call_at(now + _SWEEP_INTERVAL, lambda: self._sweep(until, clean))
        else:
            self._report_exit()

    def _report_exit(self) -> None:
        if self._on_stopped is not None:
            self._on_stopped()
        else:
            self._launcher.on_guardian_lost(self)


class ForkedProcess(WorkerProcess):
    """A process that the guardian forks, of which the host knows once the guardian has reported it."""

    def __init__(self, number: int, guardian: GuardianClient, supervisor: PoolSupervisor) -> None:
        self.guardian = guardian
        self._number = number
        self._supervisor = supervisor
        self._pidfd: int | None = None
        self._is_to_be_killed = False

    @property
    def is_forked(self) -> bool:
        """Whether the process is known."""
        return self._pidfd is not None

    def begin(self, pid: int, pidfd: int, on_death: Callable[[], None]) -> None:
        """Take over what the guardian forked; `on_death` is called when it dies, if there is a pidfd."""
        self.pid = pid
        self._pidfd = pidfd
        if pidfd == NO_PIDFD:
            self.can_be_interrupted = False
        else:
            self._supervisor.watch(pidfd, on_death)
        if self._is_to_be_killed:
            self.kill()

    def on_ready(self, pid: int) -> None:
        super().on_ready(pid)
        self.rss_when_ready = resident(pid)

    def growth(self) -> int:
        return 0 if self.pid is None else resident(self.pid) - self.rss_when_ready

    def tree_growth(self) -> int:
        return 0 if self.pid is None else tree_resident(self.pid) - self.rss_when_ready

    def kill(self) -> None:
        self._is_to_be_killed = True
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.guardian.terminate_worker(self._number)

    def interrupt(self) -> None:
        self._signal(INTERRUPT)

    def _signal(self, number: int) -> None:
        if self._pidfd == NO_PIDFD:
            if number == signal.SIGKILL:
                self.guardian.kill_worker(self._number)
        elif self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def stop_watching(self) -> None:
        """Do not call `on_death` again."""
        if self._pidfd is not None:
            self._supervisor.unwatch(self._pidfd)

    def close(self) -> None:
        if self._pidfd is not None and self._pidfd != NO_PIDFD:
            self._supervisor.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


class GuardianLauncher(Launcher):
    """Starts workers with a guardian, which is started with the first, and receives its reports."""

    def __init__(self, supervisor: PoolSupervisor, settings: dict[str, Any], workers: WorkerSet) -> None:
        self.guardian: GuardianClient | None = None
        self._supervisor = supervisor
        self._settings = settings
        self.workers = workers
        self._lease_until = math.inf

    # --- starting ---

    def launch(self, worker: WorkerHandle, fds: list[int]) -> ForkedProcess:
        try:
            guardian = self.guardian or self._start_guardian()
        except OSError:
            _close(fds)
            raise
        process = ForkedProcess(worker.number, guardian, self._supervisor)
        guardian.fork(worker.number, fds)
        return process

    def _start_guardian(self) -> GuardianClient:
        self.guardian = guardian = GuardianClient(self._supervisor, self, self._settings)
        what = f"the guardian (process {guardian.pid}) imports preload={', '.join(self._settings['preload'])}"
        self.workers.start_watch.add(guardian, what, guardian.give_up)
        guardian.set_lease(self._lease_until)
        return guardian

    def may_start_spare(self) -> bool:
        # A fork would delay the guardian's report of a killed worker. `on_worker_exit` calls `keep_spare` again.
        # It forks none while the lease is over.
        members = self.workers.members.values()
        return lease_time() < self._lease_until and not any(worker.kill_requested for worker in members)

    def set_lease(self, until: float) -> None:
        self._lease_until = until
        if self.guardian is not None:
            self.guardian.set_lease(until)

    # --- closing ---

    def begin_closing(self) -> None:
        if self.guardian is not None and not self.guardian.is_ready and self.workers.members:
            # It may be importing for a long time, and would fork the workers only after that.
            self.guardian.kill("the pool was closed before it was ready")

    def close(self, on_closed: Callable[[], None]) -> None:
        if self.guardian is None:
            on_closed()
        else:
            self.guardian.stop(on_closed)

    # --- reports of the guardian ---

    def _on_death_seen(self, worker: WorkerHandle, process: ForkedProcess) -> None:
        process.stop_watching()
        self.workers.retire(worker)
        process.guardian.expect_report(worker.number)

    def on_worker_forked(self, number: int, pid: int, pidfd: int) -> None:
        """Take note of a worker's process, and take over `pidfd`.

        `pidfd` is NO_PIDFD if it was lost because no descriptor is left. Then the worker must be killed with
        `kill_worker`: the guardian may have reaped it already, and its pid may belong to another process.
        """
        worker = self.workers.members.get(number)
        if worker is not None:
            process: Any = worker.process
            process.begin(pid, pidfd, functools.partial(self._on_death_seen, worker, process))
            if not worker.ready:
                what = "runs the initializer" if self._settings["initializer"] else "starts"
                self.workers.watch_start(worker, f"worker {pid} {what}")
        elif pidfd != NO_PIDFD:
            os.close(pidfd)

    def on_fork_failed(self, number: int, errno: int) -> None:
        """Take note that the system refused to fork the worker, for several seconds."""
        worker = self.workers.members.get(number)
        if worker is None:
            return
        self.workers.is_refused = worker.exit_expected = True
        if any(other.ready and not other.retired for other in self.workers.members.values()):
            logger.warning("the system refuses another process (%s): jobs wait for a worker", os.strerror(errno))
        else:  # The guardian has tried for seconds already, so the assignment fails at once.
            worker.crash_cause = unavailable(os.strerror(errno))
        self.workers.on_worker_exit(number, None)

    def on_lease_expired(self) -> None:
        """Take note that the guardian has killed all forked workers, since the host did not renew its lease."""
        processes: dict[WorkerHandle, Any] = {worker: worker.process for worker in self.workers.members.values()}
        ended = [worker for worker, process in processes.items() if process.is_forked]
        for worker in ended:
            worker.lease_expired = worker.exit_expected = True
            self.workers.retire(worker)
        logger.warning(
            "the guardian has ended %d workers, whose jobs start again: the lease on the store was not renewed, since "
            "that could not be written in time, or this program was stopped, or its machine suspended",
            len(ended),
        )

    def on_guardian_lost(self, lost: GuardianClient) -> None:
        """Take note that the guardian died without being stopped, and that nothing below it is alive.

        All workers are its own: until now those that were asked for went to it, too.
        """
        self.guardian = None
        self.workers.start_watch.remove(lost)
        workers = list(self.workers.members.values())
        message = lost.end
        # A pool that is closed kills a guardian that is not ready yet, and has no job there.
        level = logging.INFO if self.workers.closing else logging.WARNING
        logger.log(level, "%s, and its %d workers with it", message, len(workers))
        for worker in workers:
            worker.exit_expected = lost.is_ready
            worker.crash_cause = worker.crash_cause or lost.failure() or NodeLostError(message)
            self.workers.on_worker_exit(worker.number, -signal.SIGKILL)


class GuardianPool(ProcessPool):
    """Worker processes under a guardian, which imports what is to be preloaded: their memory can be limited."""

    can_limit_memory: ClassVar[bool] = True

    def __init__(self, supervisor: PoolSupervisor, max_workers: int, **options: Any) -> None:
        super().__init__(supervisor, max_workers, **options)
        self._memory = MemoryWatch(supervisor, self.end_for_memory)

    def make_launcher(self, settings: dict[str, Any], workers: WorkerSet) -> GuardianLauncher:
        return GuardianLauncher(self.supervisor, settings, workers)

    def largest_attempt(self) -> tuple[Assignment, int] | None:
        return largest_attempt(self._busy_workers)

    def end_for_memory(self, assignment: Assignment, error: MemoryLimitError) -> None:
        worker: WorkerHandle | None = assignment.worker
        if worker is not None:
            worker.crash_cause = error
            self.workers.retire(worker)
            worker.kill()

    def free_memory(self) -> None:
        for worker in [each for each in self.workers.idle if each.left_behind() > _LARGE_IDLE_WORKER]:
            self.workers.shut_down(worker)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
