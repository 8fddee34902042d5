"""The guardian: a fork server that also reaps. It outlives its host by a moment and leaves nothing behind.

It is started without importing the program's `__main__`, and has its own session, one thread, and the modules of the
preload list, so that a worker is one fork away. Everything that runs in its workers is below it: a worker's descendants
stay below the worker (a child subreaper), and become the guardian's children when the worker dies. So after each death
it kills and reaps all its children that are not workers, repeatedly until none is left, and only then sends EXITED.
When the host dies, it does so for all workers, and exits. It also kills them when the host has not been heard for as
long as its lease on a store allows (a signal stopped it, or the machine was suspended): then another host may run their
jobs. The guardian and the workers hold the host's presence (see `presence`): as long as one of them lives, the host
counts as alive.

    host -> guardian    FORK (with the worker's descriptors: socket, tickets, stdout, stderr), TERMINATE (the worker's
                        process group), KILL, LEASE (until when its workers may run if no further one arrives)
    guardian -> host    READY, FORKED (with a pidfd), EXITED (how it exited; all it started is dead), FORK_FAILED, LOG,
                        EXPIRED (the workers that were forked by now are killed, since the lease is over)

It runs beside every program that uses processes, so it needs the standard library alone.
"""

from __future__ import annotations

import array
import contextlib
import gc
import math
import os
import select
import signal
import socket
import struct
import time
import traceback
from typing import Any

from executor_adapter.worker import process, wire
from executor_adapter.worker.process_tree import become_subreaper, children, kill
from executor_adapter.worker.wire import lease_time

PACKET = struct.Struct("<BIii")
"""Kind, number of the worker, and two numbers: the pid for FORKED, si_code and si_status for EXITED, the errno for
FORK_FAILED. Text follows in a LOG, and the `lease_time` in a LEASE."""
FORK, TERMINATE, KILL, READY, FORKED, EXITED, FORK_FAILED, LOG, LEASE, EXPIRED = range(1, 11)

MAX_PACKET_SIZE = 4096
FD_SPACE = socket.CMSG_SPACE(4 * 4)

_RETRY_INTERVAL = 0.05
"""Seconds between two attempts to fork, or to find the last orphans."""
_LEASE_CHECK_INTERVAL = 1.0
"""Max seconds between two looks at the lease: `poll` does not count the time while the machine is suspended."""
_END_TIMEOUT = 5.0
"""Seconds that a guardian without a host spends to kill what is left."""
_NEVER = 2**31 - 1
"""A threshold of the garbage collector that is not reached."""


def main(fds: list[int], setup: dict[str, Any]) -> None:
    """Fork and reap workers until the host has died.

    `fds`: the socket to the host alone. `setup`: see `pools.process.handle`.
    """
    for fd in (*fds, *setup["presence"]):
        os.set_inheritable(fd, False)
    _ignore_signals()
    become_subreaper("job-guardian")
    with socket.socket(fileno=fds[0]) as host:
        try:
            guardian = Guardian(host, setup)
        except ProcessLookupError:  # The host has died already.
            return
        guardian.preload()
        guardian.run()


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A mask is inherited: without SIGCHLD no exit would be noticed, and workers would not notice SIGTERM.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class Guardian:
    """Forks workers when the host asks for them, and reports each exit when all that the worker started is dead."""

    def __init__(self, host: socket.socket, setup: dict[str, Any]) -> None:
        self._host = host
        self._setup = setup
        self._pid = os.getpid()
        # The socket's end alone is not enough: a process that the host forked may hold the other end open.
        self._host_pidfd = os.pidfd_open(setup["host"])
        self._workers: dict[int, int] = {}
        """The number of each living worker, by pid."""
        self._exited: list[tuple[int, int, int, float]] = []
        """Workers that have exited but may have left something: number, si_code, si_status, and when."""
        self._orphans: dict[int, float] = {}
        """Processes that dead workers left, with the time they were first seen."""
        self._fork_requests: list[tuple[int, list[int], float]] = []
        """Workers to be forked: number, descriptors, and until when to try."""
        self._next_fork_at = 0.0
        self._lease_until = math.inf
        self._is_expired = False
        """Whether the lease is over: then no worker runs, and none is forked, since it might have calls already."""
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._notice_exits()

    def _notice_exits(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)

    def preload(self) -> None:
        """Import what the workers will need."""
        # What modules make when they are imported stays: looking for garbage in it takes a tenth of the time. What a
        # module does to the garbage collector by itself stays.
        thresholds = gc.get_threshold()
        gc.set_threshold(_NEVER)
        process.preload(self._setup["preload"], lambda text: self._send(LOG, text=text))
        if gc.get_threshold()[0] == _NEVER:
            gc.set_threshold(*thresholds)
        # Modules may install handlers when they are imported.
        _ignore_signals()
        self._notice_exits()
        # The garbage collector does not touch frozen objects, so their pages stay shared with the workers.
        gc.collect()
        gc.freeze()
        self._send(READY)

    def run(self) -> None:
        """Serve the host until it has died, then kill all workers."""
        poll = select.poll()
        for fd in (self._host.fileno(), self._host_pidfd, self._wake_reader):
            poll.register(fd, select.POLLIN)
        host_lives = True
        while host_lives:
            for fd, _ in poll.poll(self._poll_timeout()):
                if fd == self._wake_reader:
                    self._drain_wake_pipe()
                else:
                    host_lives = host_lives and fd != self._host_pidfd and self._receive()
            self._end_expired()
            # A fork takes milliseconds: one per turn, and exits first, since jobs wait for those slots.
            self._report_exits()
            self._fork_next()
        self._kill_all()

    def _poll_timeout(self) -> float | None:
        """Return how long to wait for the next event, in milliseconds; None for any time."""
        if self._fork_requests and not self._is_expired:
            return max(0.0, self._next_fork_at - time.monotonic()) * 1000
        if self._exited:
            return _RETRY_INTERVAL * 1000
        if self._lease_until == math.inf or self._is_expired or not self._workers:
            return None
        return max(0.0, min(self._lease_until - lease_time(), _LEASE_CHECK_INTERVAL)) * 1000

    def _receive(self) -> bool:
        """Carry out a request of the host. Return False if the host has closed the socket."""
        try:
            packet, ancillary, _, _ = self._host.recvmsg(MAX_PACKET_SIZE, FD_SPACE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        if not packet:
            return False
        kind, number, _, _ = PACKET.unpack_from(packet)
        if kind == FORK:
            fds = array.array("i", ancillary[0][2]).tolist()
            self._fork_requests.append((number, fds, time.monotonic() + wire.REFUSED_TIMEOUT))
        elif kind == LEASE:
            self._lease_until = float(packet[PACKET.size :])
        for pid in [pid for pid, its_number in self._workers.items() if its_number == number]:
            if kind == TERMINATE:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGTERM)
            elif kind == KILL:
                kill(pid)
        return True

    def _end_expired(self) -> None:
        """Kill all workers when the lease is over."""
        was_expired, self._is_expired = self._is_expired, lease_time() >= self._lease_until
        if self._is_expired and not was_expired and self._workers:
            self._send(EXPIRED)
            for pid in self._workers:
                kill(pid)

    # --- forks ---

    def _fork_next(self) -> None:
        if not self._fork_requests or self._is_expired or time.monotonic() < self._next_fork_at:
            return
        number, fds, until = self._fork_requests.pop(0)
        try:
            self._fork(number, fds)
        except OSError as error:
            if (again_at := time.monotonic() + _RETRY_INTERVAL) < until:
                self._next_fork_at = again_at
                self._fork_requests.append((number, fds, until))
                return
            self._send(FORK_FAILED, number, error.errno or 0)
        for fd in fds:
            os.close(fd)

    def _fork(self, number: int, fds: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_worker(fds)
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            kill(pid)
            raise
        self._workers[pid] = number
        self._send(FORKED, number, pid, fd=pidfd)
        os.close(pidfd)

    def _become_worker(self, fds: list[int]) -> None:
        """Run a worker in the forked process. Never returns, whatever happens."""
        code = process.EXIT_SETUP_FAILED
        try:
            signal.set_wakeup_fd(-1)
            become_subreaper("job-worker", dies_with_parent=True)
            if os.getppid() == self._pid:  # Otherwise the guardian died before this process asked to die with it.
                self._close_inherited()
                os.setsid()
                code = process.main(fds, self._setup)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _close_inherited(self) -> None:
        """Close the guardian's own descriptors, and those of workers that are not forked yet."""
        self._host.close()
        others = [fd for _, its_fds, _ in self._fork_requests for fd in its_fds]
        for fd in (self._host_pidfd, self._wake_reader, self._wake_writer, *others):
            os.close(fd)

    # --- exits ---

    def _report_exits(self) -> None:
        """Reap dead processes, and report each worker whose descendants are all dead."""
        self._reap()
        if not self._exited:
            return
        self._kill_orphans()
        waiting = []
        for number, code, status, at in self._exited:
            # An orphan that was first seen after this worker's exit may be its own. One seen before, which the kernel
            # has not released yet, is not.
            if any(seen >= at for seen in self._orphans.values()):
                waiting.append((number, code, status, at))
            else:
                self._send(EXITED, number, code, status)
        self._exited = waiting

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (died := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                number = self._workers.pop(died.si_pid, None)
                if number is not None:
                    # Until the worker is reaped, no other process group can have its id.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(died.si_pid, signal.SIGKILL)
                    self._exited.append((number, died.si_code, died.si_status, time.monotonic()))
                os.waitpid(died.si_pid, 0)

    def _kill_orphans(self) -> None:
        now = time.monotonic()
        found = [pid for pid in children(self._pid) if pid not in self._workers]
        # A process of another user cannot be killed, so it is not waited for.
        self._orphans = {pid: self._orphans.get(pid, now) for pid in found if kill(pid)}

    def _kill_all(self) -> None:
        """Kill all workers and what they started, since the host has died. Return when nothing is left, or in time."""
        until = time.monotonic() + _END_TIMEOUT
        self._workers.clear()
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        while time.monotonic() < until:
            self._reap()
            self._kill_orphans()
            if not self._orphans:
                return
            poll.poll(_RETRY_INTERVAL * 1000)
            self._drain_wake_pipe()

    # --- sockets ---

    def _send(
        self, kind: int, number: int = 0, first: int = 0, second: int = 0, *, fd: int = -1, text: str = ""
    ) -> None:
        packet = PACKET.pack(kind, number, first, second) + text.encode(errors="backslashreplace")
        # The death of the host is noticed in `run`.
        with contextlib.suppress(ConnectionError):
            wire.send_fds(self._host, packet[:MAX_PACKET_SIZE], [fd] if fd >= 0 else [])

    def _drain_wake_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)
