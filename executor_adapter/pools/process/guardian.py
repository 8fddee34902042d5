"""The host's side of the guardian: starts it, sends it requests, and receives what it reports."""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import secrets
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.base import PoolSupervisor, Timer
from executor_adapter.pools.patience import Patience
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.worker import (
    TREE_VARIABLE,
    guardian,
    interpreter_command,
    kill_below,
    kill_marked,
    own_presence,
    wire,
)

NO_PIDFD = -1

_EXIT_TIMEOUT = 1.0
"""Seconds after which a guardian that was asked to exit is killed."""
_REPLY_TIMEOUT = 7.0
"""Seconds to wait for the answer to a request. The guardian itself tries a fork for 5 seconds."""
_SWEEP_INTERVAL = 0.005
_MIN_CLEAN_SWEEPS = 3
"""Sweeps in a row that must find no process: one sweep may miss a process that a dying parent starts meanwhile."""
_SWEEP_TIMEOUT = 5.0


class GuardianListener(Protocol):
    """Receives the reports of a guardian, on the supervisor's thread."""

    def on_worker_forked(self, number: int, pid: int, pidfd: int) -> None:
        """Take note of a worker's process, and take over `pidfd`.

        `pidfd` is NO_PIDFD if it was lost because no descriptor is left. Then the worker must be killed with
        `kill_worker`: the guardian may have reaped it already, and its pid may belong to another process.
        """

    def on_worker_exit(self, number: int, returncode: int) -> None:
        """Take note that the worker has exited, and that nothing it started is alive.

        The code is that of `subprocess.Popen.returncode`.
        """

    def on_fork_failed(self, number: int, errno: int) -> None:
        """Take note that the system refused to fork the worker, for several seconds."""

    def on_lease_expired(self) -> None:
        """Take note that the guardian has killed all forked workers, since the host did not renew its lease."""

    def on_log(self, text: str) -> None:
        """Log a warning of the guardian."""

    def on_guardian_ready(self, guardian: GuardianClient) -> None:
        """Take note that the guardian has imported the modules to preload."""

    def on_guardian_lost(self, lost: GuardianClient) -> None:
        """Take note that the guardian died without being stopped, and that nothing below it is alive."""


class GuardianClient:
    """One guardian process. `settings` go to it and to each worker unchanged.

    The guardian's set-up is `settings` (preload, initializer, nice, cpu_affinity, log_level), the host's pid, its
    sys.path, and the descriptors of its presence.

    Raises:
        OSError: the guardian cannot be started.
    """

    def __init__(self, supervisor: PoolSupervisor, listener: GuardianListener, settings: dict[str, Any]) -> None:
        self.is_ready = False
        """Whether the guardian has imported the modules to preload."""
        self.kill_reason: str | None = None
        """Why this process killed it, if it did."""
        self._start_error: WorkerUnavailableError | None = None
        self._supervisor = supervisor
        self._listener = listener
        self._token = secrets.token_hex(16)
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._unanswered: set[int] = set()
        self._is_dead = False
        self._on_stopped: Callable[[], None] | None = None
        self._kill_timer: Timer | None = None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                held = own_presence().fds + settings["held_fds"]
                of_host = {"host": os.getpid(), "path": current_path(), "presence": held}
                self._process = self._start_process(theirs, settings | of_host)
            self._pidfd = self._open_pidfd()
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.fd = self._socket.fileno()
        supervisor.watch(self.fd, self.receive)
        supervisor.watch(self._pidfd, self._on_exit)

    def _start_process(self, theirs: socket.socket, setup: dict[str, Any]) -> subprocess.Popen[bytes]:
        # Arguments and environment variables have a size limit, and other users can read them.
        setup_fd = os.memfd_create("executor-adapter-setup")
        try:
            with open(setup_fd, "wb", closefd=False) as file:
                pickle.dump(setup, file)
            os.lseek(setup_fd, 0, os.SEEK_SET)
            return subprocess.Popen(
                interpreter_command(guardian.BOOTSTRAP, str(setup_fd), str(theirs.fileno())),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, TREE_VARIABLE: self._token},
                pass_fds=(setup_fd, theirs.fileno(), *setup["presence"]),
                start_new_session=True,
            )
        finally:
            os.close(setup_fd)

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
    def exit_code(self) -> int | None:
        """The exit code as `subprocess` gives it: negative if a signal killed the guardian."""
        return self._process.returncode

    @property
    def end(self) -> str:
        """How it ended without being asked to, as a clause."""
        if self.kill_reason is not None:
            return f"the guardian (process {self.pid}) was killed by this program because {self.kill_reason}"
        early = "" if self.is_ready else " before it was ready: see its stderr"
        return f"the guardian (process {self.pid}) ended with code {self.exit_code}{early}"

    # --- requests ---

    def fork(self, number: int, fds: list[int]) -> None:
        """Ask for a worker with these descriptors, which are closed once they are sent."""
        self._expect_answer(number)
        self._send(guardian.FORK, number, fds)

    def terminate_worker(self, number: int) -> None:
        """Send SIGTERM to the worker and its process group."""
        self._send(guardian.TERMINATE, number, [])

    def kill_worker(self, number: int) -> None:
        """Send SIGKILL to a worker without a pidfd. The guardian must report its exit in time."""
        self._expect_answer(number)
        self._send(guardian.KILL, number, [])

    def set_lease(self, until: float) -> None:
        """Let the workers run until this `lease_time`, unless a later one is sent by then."""
        self._send(guardian.LEASE, 0, [], repr(until).encode())

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
            self._kill_after(_EXIT_TIMEOUT, "it did not exit when it was asked to")

    def _expect_answer(self, number: int) -> None:
        self._unanswered.add(number)
        self._limit_answer_time()

    def _on_answer(self, number: int) -> None:
        self._unanswered.discard(number)
        if self._kill_timer is not None:
            self._kill_timer.cancel()
            self._kill_timer = None
        self._limit_answer_time()

    def _limit_answer_time(self) -> None:
        """Kill a guardian that does not answer in time, for example because a signal stopped it.

        Before it is ready there is no limit, since its imports may take any time.
        """
        if self._kill_timer is None and self._unanswered and self.is_ready:
            self._kill_after(_REPLY_TIMEOUT, f"it did not answer for {_REPLY_TIMEOUT:.0f} s")

    def _kill_after(self, seconds: float, reason: str) -> None:
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = Patience(self._supervisor, seconds, lambda: self.kill(reason))

    def _send(self, kind: int, number: int, fds: list[int], text: bytes = b"") -> None:
        if self._is_dead:  # `on_guardian_lost` follows, and reports the worker too
            _close(fds)
            return
        self._unsent.append((guardian.PACKET.pack(kind, number, 0, 0) + text, fds))
        if len(self._unsent) == 1:
            self._send_unsent()

    def _send_unsent(self) -> None:
        while self._unsent:
            packet, fds = self._unsent[0]
            try:
                wire.send_fds(self._socket, packet, fds)
            except BlockingIOError:
                self._supervisor.watch_writable(self.fd, self._send_unsent)
                return
            except OSError:
                pass  # It has died, which its pidfd shows.
            _close(fds)
            self._unsent.popleft()
        self._supervisor.watch_writable(self.fd, None)

    # --- reports ---

    def receive(self) -> None:
        """Receive all reports that have arrived, and pass them to the listener."""
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
        if kind == guardian.FORKED:
            self._on_answer(number)
            pidfd = array.array("i", ancillary[0][2])[0] if ancillary else NO_PIDFD
            self._listener.on_worker_forked(number, first, pidfd)
        elif kind == guardian.EXITED:
            self._on_answer(number)
            self._listener.on_worker_exit(number, second if first == os.CLD_EXITED else -second)
        elif kind == guardian.FORK_FAILED:
            self._on_answer(number)
            self._listener.on_fork_failed(number, first)
        elif kind == guardian.EXPIRED:
            self._listener.on_lease_expired()
        elif kind == guardian.LOG:
            self._listener.on_log(packet[guardian.PACKET.size :].decode())
        elif kind == guardian.READY:
            self.is_ready = True
            self._listener.on_guardian_ready(self)
            self._limit_answer_time()
        return True

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
        for _, fds in self._unsent:
            _close(fds)
        self._unsent.clear()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
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
            self._listener.on_guardian_lost(self)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
