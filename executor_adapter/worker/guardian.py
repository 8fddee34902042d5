"""The guardian: a small process that forks the workers, outlives the host by a moment and leaves nothing behind.

It is started without importing the program's `__main__`, has its own session, one thread, and the modules of the
preload list, so that a worker is one fork away. Everything that runs in its workers is below it: a worker's own
descendants are the worker's (child subreaper) and become the guardian's when the worker dies. So after each death
it kills and reaps every child of its own that is no worker, again until there is none, and only then says GONE.
When the host dies it does so for all of them, and exits. It and the workers hold the host's presence (`presence`): as
long as any of them lives, nobody takes the host for gone.

    host -> guardian    FORK (with the worker's descriptors: socket, tickets, stdout, stderr), TERMINATE (its group),
                        KILL
    guardian -> host    UP, FORKED (with a pidfd), GONE (how it exited, and nothing of it is alive), UNABLE, NOTE

It runs beside every program that uses processes, so it needs the standard library alone.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import struct
import time
import traceback
from typing import Any

from executor_adapter.worker import process
from executor_adapter.worker.process_tree import become, children, kill

PACKET = struct.Struct("<BIii")
"""Kind, number of the worker, and two numbers: of FORKED the pid, of GONE si_code and si_status, of UNABLE the errno.
A NOTE has text behind it."""
FORK, TERMINATE, KILL, UP, FORKED, GONE, UNABLE, NOTE = range(1, 9)

PACKET_LIMIT = 4096
FD_SPACE = socket.CMSG_SPACE(4 * 4)

_FORK_PATIENCE = 5.0
"""Seconds for which a fork that the system refuses is tried again."""
_RETRY = 0.05


def main(host_fd: int, setup: dict[str, Any]) -> None:
    """Guard until the host is gone. `setup`: see `launcher.Guardian`."""
    for fd in (host_fd, *setup["presence"]):
        os.set_inheritable(fd, False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    become("job-guardian")
    with socket.socket(fileno=host_fd) as host:
        try:
            guard = Guard(host, setup)
        except ProcessLookupError:  # the host is gone already
            return
        guard.preload()
        guard.run()


class Guard:
    def __init__(self, host: socket.socket, setup: dict[str, Any]) -> None:
        self._host = host
        self._setup = setup
        self._pid = os.getpid()
        # Not the socket's end alone: a process that the host forked may hold the other end open.
        self._host_pidfd = os.pidfd_open(setup["host"])
        self._workers: dict[int, int] = {}
        self._dead: list[tuple[int, int, int, float]] = []
        self._orphans: dict[int, float] = {}
        self._unforked: list[tuple[int, list[int], float]] = []
        self._fork_at = 0.0
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)

    def preload(self) -> None:
        """Import what the workers will need, once for all; what fails is left to fail where it is needed."""
        for name in self._setup["preload"]:
            try:
                importlib.import_module(name)
            except Exception:
                self._say(NOTE, text=f"cannot preload {name}: {traceback.format_exc(limit=-1)}")
        # Moved out of the collector's sight, these objects are not touched by it, and their pages stay shared.
        gc.collect()
        gc.freeze()
        self._say(UP)

    def run(self) -> None:
        poll = select.poll()
        for fd in (self._host.fileno(), self._host_pidfd, self._wake_reader):
            poll.register(fd, select.POLLIN)
        host_lives = True
        while host_lives:
            for fd, _ in poll.poll(self._time_to_sleep()):
                if fd == self._wake_reader:
                    self._drain_wake_pipe()
                else:
                    host_lives = host_lives and fd != self._host_pidfd and self._listen()
            # A fork takes milliseconds: one at a time, and the dead first, since somebody waits for their slots.
            self._bury()
            self._fork_next()
        self._end_all()

    def _time_to_sleep(self) -> float | None:
        """Milliseconds."""
        if self._unforked:
            return max(0.0, self._fork_at - time.monotonic()) * 1000
        return _RETRY * 1000 if self._dead else None

    def _listen(self) -> bool:
        """Do what the host asks; False where it is gone."""
        try:
            packet, ancillary, _, _ = self._host.recvmsg(PACKET_LIMIT, FD_SPACE, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        if not packet:
            return False
        kind, number, _, _ = PACKET.unpack(packet)
        if kind == FORK:
            fds = array.array("i", ancillary[0][2]).tolist()
            self._unforked.append((number, fds, time.monotonic() + _FORK_PATIENCE))
        for pid in [pid for pid, its_number in self._workers.items() if its_number == number]:
            if kind == TERMINATE:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGTERM)
            elif kind == KILL:
                kill(pid)
        return True

    # --- births ---

    def _fork_next(self) -> None:
        if not self._unforked or time.monotonic() < self._fork_at:
            return
        number, fds, until = self._unforked.pop(0)
        try:
            self._fork(number, fds)
        except OSError as error:
            self._fork_at = time.monotonic() + _RETRY
            if self._fork_at < until:
                self._unforked.append((number, fds, until))
                return
            self._say(UNABLE, number, error.errno or 0)
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
        self._say(FORKED, number, pid, fd=pidfd)
        os.close(pidfd)

    def _become_worker(self, fds: list[int]) -> None:
        """In the child: never returns, whatever happens."""
        code = process.FAILED_TO_START
        try:
            signal.set_wakeup_fd(-1)
            become("job-worker", dies_with_parent=True)
            if os.getppid() == self._pid:  # else the guardian died before it could take the worker along
                self._let_go()
                os.setsid()
                code = process.main(fds, self._setup)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _let_go(self) -> None:
        self._host.close()
        others = [fd for _, its_fds, _ in self._unforked for fd in its_fds]
        for fd in (self._host_pidfd, self._wake_reader, self._wake_writer, *others):
            os.close(fd)

    # --- deaths ---

    def _bury(self) -> None:
        """Reap what has died; tell of each worker once nothing of it is alive."""
        self._reap()
        if not self._dead:
            return
        self._kill_orphans()
        waiting = []
        for number, code, status, at in self._dead:
            # One that is first seen after this worker's death may be its; an older one, stuck in the kernel, is not.
            if any(seen >= at for seen in self._orphans.values()):
                waiting.append((number, code, status, at))
            else:
                self._say(GONE, number, code, status)
        self._dead = waiting

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (died := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                number = self._workers.pop(died.si_pid, None)
                if number is not None:
                    # Before it is reaped, its id cannot belong to anybody else's group.
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(died.si_pid, signal.SIGKILL)
                    self._dead.append((number, died.si_code, died.si_status, time.monotonic()))
                os.waitpid(died.si_pid, 0)

    def _kill_orphans(self) -> None:
        now = time.monotonic()
        found = [pid for pid in children(self._pid) if pid not in self._workers]
        # Another user's cannot be killed, so none is waited for.
        self._orphans = {pid: self._orphans.get(pid, now) for pid in found if kill(pid)}

    def _end_all(self) -> None:
        """The host is gone: kill every tree, and leave when there is nothing left, or after some seconds."""
        until = time.monotonic() + 5.0
        self._workers.clear()
        poll = select.poll()
        poll.register(self._wake_reader, select.POLLIN)
        while time.monotonic() < until:
            self._reap()
            self._kill_orphans()
            if not self._orphans:
                return
            poll.poll(_RETRY * 1000)
            self._drain_wake_pipe()

    # --- the wire ---

    def _say(
        self, kind: int, number: int = 0, first: int = 0, second: int = 0, *, fd: int = -1, text: str = ""
    ) -> None:
        packet = PACKET.pack(kind, number, first, second) + text.encode()[: PACKET_LIMIT - PACKET.size]
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        # A host that is gone is noticed where it is listened to.
        with contextlib.suppress(ConnectionError):
            self._host.sendmsg([packet], rights)

    def _drain_wake_pipe(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)


BOOTSTRAP = (
    "import pickle, sys\n"
    "with open(int(sys.argv[1]), 'rb') as file:\n"
    "    setup = pickle.load(file)\n"
    "sys.path[:] = setup['path']\n"
    "from executor_adapter.worker.guardian import main\n"
    "main(int(sys.argv[2]), setup)\n"
)
"""What the guardian's interpreter runs: it must have the host's sys.path before it can find this package."""
