"""The host's side of the guardian: started when the first worker is needed, asked for workers, watched."""

from __future__ import annotations

import array
import contextlib
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from executor_adapter.pools.base import PoolSupervisor, Timer
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.worker import guardian
from executor_adapter.worker.presence import presence
from executor_adapter.worker.process_tree import TREE_VARIABLE, kill_below, kill_marked

NO_PIDFD = -1

_EXIT_PATIENCE = 1.0
_FORK_PATIENCE = 7.0
"""Seconds for the answer to a request, the guardian's own patience with the system included."""
_SWEEP_EVERY = 0.005
_CLEAN_SWEEPS = 3
"""Sweeps in a row that must find nobody: one may miss a process that is born of a dying parent while it looks."""
_SWEEP_PATIENCE = 5.0


class Listener(Protocol):
    """Told what the guardian says; all on the supervisor's thread."""

    def forked(self, number: int, pid: int, pidfd: int) -> None:
        """The worker lives; `pidfd` is the listener's to close. NO_PIDFD: it was lost, since no descriptor is left, and
        `kill_worker` takes its place (the guardian may have buried the worker, and its pid be another's)."""

    def gone(self, number: int, si_code: int, si_status: int) -> None:
        """The worker has exited so, and nothing that it started is alive."""

    def unable(self, number: int, errno: int) -> None:
        """The system refused another process for seconds."""

    def noted(self, text: str) -> None: ...

    def guardian_lost(self, lost: Guardian) -> None:
        """It died unasked, and nothing of its tree is alive any more."""


class Guardian:
    """One guardian process. `settings` (the rest of its set-up: preload, initializer, nice, cpu_affinity, log_level)
    go to it and to every worker as they are.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, supervisor: PoolSupervisor, listener: Listener, settings: dict[str, Any]) -> None:
        self.is_up = False
        self._supervisor = supervisor
        self._listener = listener
        self._token = secrets.token_hex(16)
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._asked: set[int] = set()
        self._is_dead = False
        self._on_stopped: Callable[[], None] | None = None
        self._patience: Timer | None = None
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours = {"host": os.getpid(), "path": current_path(), "presence": presence().fds}
            self._process = self._spawn(theirs, settings | ours)
        self._pidfd = os.pidfd_open(self._process.pid)
        self._socket.setblocking(False)
        supervisor.watch(self._socket.fileno(), self._on_readable)
        supervisor.watch(self._pidfd, self._on_dead)

    def _spawn(self, theirs: socket.socket, setup: dict[str, Any]) -> subprocess.Popen[bytes]:
        # Not an argument or a variable: these have a size limit, and are there for all to see.
        setup_fd = os.memfd_create("executor-adapter-setup")
        try:
            with open(setup_fd, "wb", closefd=False) as file:
                pickle.dump(setup, file)
            os.lseek(setup_fd, 0, os.SEEK_SET)
            return subprocess.Popen(
                [sys.executable, "-c", guardian.BOOTSTRAP, str(setup_fd), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, TREE_VARIABLE: self._token},
                pass_fds=(setup_fd, theirs.fileno(), *setup["presence"]),
                start_new_session=True,
            )
        finally:
            os.close(setup_fd)

    # --- asking ---

    def fork(self, number: int, fds: list[int]) -> None:
        """Ask for a worker on these descriptors, which are closed once they are on their way."""
        self._asked.add(number)
        self._be_patient()
        self._send(guardian.FORK, number, fds)

    def terminate(self, number: int) -> None:
        """Send SIGTERM to the worker and its process group."""
        self._send(guardian.TERMINATE, number, [])

    def kill_worker(self, number: int) -> None:
        """Send SIGKILL to the worker, of which there is no pidfd; `gone` is awaited."""
        self._asked.add(number)
        self._be_patient()
        self._send(guardian.KILL, number, [])

    def kill(self) -> None:
        """End a guardian that does not answer, with all that is below it now; `guardian_lost` follows."""
        if self._pidfd >= 0:
            # Its workers would die with it, but who has an environment of its own would be found no more.
            with contextlib.suppress(OSError):  # no descriptor is left to look with
                kill_below(self._process.pid)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def stop(self, on_stopped: Callable[[], None]) -> None:
        """Let it exit, when it has no worker left; the socket's end tells it."""
        self._on_stopped = on_stopped
        if not self._is_dead:
            with contextlib.suppress(OSError):  # it is, and its pidfd has not told yet
                self._socket.shutdown(socket.SHUT_RDWR)
            self._wait(_EXIT_PATIENCE)

    def _be_patient(self) -> None:
        """Somebody may have stopped it: one that does not answer is killed. Its imports may take any time."""
        if self._patience is None and self._asked and self.is_up:
            self._wait(_FORK_PATIENCE)

    def _answered(self, number: int) -> None:
        self._asked.discard(number)
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self._be_patient()

    def _wait(self, seconds: float) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self._supervisor.call_at(self._supervisor.now() + seconds, self.kill)

    def _send(self, kind: int, number: int, fds: list[int]) -> None:
        if self._is_dead:  # `guardian_lost` follows, and takes along who was to be
            _close(fds)
            return
        self._unsent.append((guardian.PACKET.pack(kind, number, 0, 0), fds))
        if len(self._unsent) == 1:
            self._send_waiting()

    def _send_waiting(self) -> None:
        while self._unsent:
            packet, fds = self._unsent[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self._socket.sendmsg([packet], rights)
            except BlockingIOError:
                self._supervisor.watch_writable(self._socket.fileno(), self._send_waiting)
                return
            except OSError:
                pass  # it is dead, which its pidfd tells
            _close(fds)
            self._unsent.popleft()
        self._supervisor.watch_writable(self._socket.fileno(), None)

    # --- hearing ---

    def _on_readable(self) -> None:
        while self._receive():
            pass

    def _receive(self) -> bool:
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(
                guardian.PACKET_LIMIT, guardian.FD_SPACE, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except OSError:
            packet, ancillary = b"", []
        if not packet:
            self._is_dead = True
            self._supervisor.unwatch(self._socket.fileno())
            return False
        kind, number, first, second = guardian.PACKET.unpack_from(packet)
        if kind == guardian.FORKED:
            self._answered(number)
            pidfd = array.array("i", ancillary[0][2])[0] if ancillary else NO_PIDFD
            self._listener.forked(number, first, pidfd)
        elif kind == guardian.GONE:
            self._answered(number)
            self._listener.gone(number, first, second)
        elif kind == guardian.UNABLE:
            self._answered(number)
            self._listener.unable(number, first)
        elif kind == guardian.NOTE:
            self._listener.noted(packet[guardian.PACKET.size :].decode())
        elif kind == guardian.UP:
            self.is_up = True
            self._be_patient()
        return True

    # --- its end ---

    @property
    def exit_code(self) -> int | None:
        """As of subprocess: negative where a signal killed it."""
        return self._process.returncode

    def _on_dead(self) -> None:
        self._on_readable()
        self._is_dead = True
        self._process.wait()
        self._supervisor.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._supervisor.unwatch(self._socket.fileno())
        self._socket.close()
        for _, fds in self._unsent:
            _close(fds)
        self._unsent.clear()
        if self._patience is not None:
            self._patience.cancel()
        if self._process.returncode == 0 and self._on_stopped is not None:  # it left nothing
            self._over()
        else:
            self._sweep(self._supervisor.now() + _SWEEP_PATIENCE)

    def _sweep(self, until: float, clean: int = 0) -> None:
        """Kill what is left of the tree: the workers die with their guardian, but not what they started."""
        try:
            clean = 0 if kill_marked(self._token) else clean + 1
        except OSError:  # no descriptor is left to look with
            clean = 0
        now = self._supervisor.now()
        if clean < _CLEAN_SWEEPS and now < until:
            self._supervisor.call_at(now + _SWEEP_EVERY, lambda: self._sweep(until, clean))
        else:
            self._over()

    def _over(self) -> None:
        if self._on_stopped is not None:
            self._on_stopped()
        else:
            self._listener.guardian_lost(self)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
