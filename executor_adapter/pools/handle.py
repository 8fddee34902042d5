"""The host's side of one worker: its calls, its tickets, its socket."""

from __future__ import annotations

import array
import contextlib
import itertools
import os
import pickle
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools import encoding, wire
from executor_adapter.pools.base import Assignment, Supervisor, Timer
from executor_adapter.pools.calls import Payload
from executor_adapter.pools.launcher import Guardian, current_path
from executor_adapter.pools.output import Output
from executor_adapter.pools.values import MemoryFile

_MOST_FUNCTIONS = 512
"""Functions that a worker is let keep; past it, it forgets all and is sent anew what it needs."""

RECEIVE_BUFFER = bytearray(1 << 18)
"""Shared: all sockets are read by the supervisor's thread, and what is read is used up before the next read."""


class SharedPath:
    """sys.path as the workers know it, and how often it has changed."""

    def __init__(self) -> None:
        self.version = 0
        self.frame = b""
        self._seen = list(sys.path)

    def look(self) -> None:
        if sys.path != self._seen:
            self._seen = list(sys.path)
            self.version += 1
            body = pickle.dumps(current_path(), 5)
            self.frame = wire.HEADER.pack(len(body), wire.PATH, 0, 0, 0, 0, 0.0, 0.0) + body


class WorkerHandle:
    """One worker. `queue` holds its assignments in the order it runs them; the last `unsent` are not sent yet.

    Calls are numbered from 1 in the order they are sent; `head` is the number of queue[0]. Numbers of calls taken back
    are given out again, once the worker has said that it dropped them, so those in the queue always follow one another.
    """

    numbers = itertools.count(1)

    def __init__(self, supervisor: Supervisor, guardian: Guardian) -> None:
        self.number = next(self.numbers) & wire.WORD
        self.guardian = guardian
        self.queue: deque[Assignment] = deque()
        self.unsent = 0
        self.head = 1
        self.done = 0
        self.pid: int | None = None
        self.ready = False
        self.doomed = False
        """It is given nothing more, and dies soon."""
        self.dropping = False
        """It was told to drop calls, and has not said that it did."""
        self.hears = True
        """Its socket is watched."""
        self.kill_wanted = False
        self.let_go = False
        """We had it end: that it did so is no failure of its own."""
        self.stopping: Assignment | None = None
        self.stop_at = 0.0
        self.kill_at = 0.0
        self.verdict: WorkerCrashedError | None = None
        """Why we killed it, where that is what its job's error shall say."""
        self.first_rss = 0
        self.timer: Timer | None = None
        self.path_version = 0
        self._supervisor = supervisor
        self._parts: dict[Assignment, bytes] = {}
        self._known: set[int] = set()
        self._backlog: deque[tuple[memoryview, MemoryFile | None]] = deque()
        self._pidfd: int | None = None
        self._open()

    def _open(self) -> None:
        """Make the descriptors, ask the guardian for the process, and close the worker's ends here.

        Raises:
            OSError: no descriptor is left.
        """
        with contextlib.ExitStack() as undo:
            self.socket, theirs = socket.socketpair()
            undo.callback(self.socket.close)
            undo.callback(theirs.close)
            self.tickets = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
            undo.callback(os.close, self.tickets)
            stdout, their_stdout = _pipe(undo)
            stderr, their_stderr = _pipe(undo)
            their_tickets = os.dup(self.tickets)
            undo.pop_all()
        self.socket.setblocking(False)
        self.fd = self.socket.fileno()
        self.reader = wire.FrameReader(self.socket, RECEIVE_BUFFER)
        self.output = Output(self._supervisor, stdout, stderr, self.queue)
        self.guardian.fork(self.number, [theirs.detach(), their_tickets, their_stdout, their_stderr])

    @property
    def sent(self) -> int:
        """How many of the queue were sent."""
        return len(self.queue) - self.unsent

    def speaker(self) -> Assignment | None:
        return self.queue[0] if self.queue else None

    # --- calls ---

    def give(self, assignment: Assignment) -> None:
        """Take an assignment, to be sent by `write`.

        Raises:
            Exception: the argument of its scope cannot be pickled.
        """
        if assignment.scope is not None or assignment.checkpoint is not None:
            self._parts[assignment] = encoding.dumps((assignment.scope, assignment.checkpoint))
        assignment.worker = self
        self.queue.append(assignment)
        self.unsent += 1

    def write(self, path: SharedPath) -> None:
        """Send what was given since the last time."""
        count, self.unsent = self.unsent, 0
        pieces: list[bytes] = []
        if self.path_version != path.version:
            self.path_version = path.version
            pieces.append(path.frame)
        # Tickets first: a worker that has the frame must not find that it needs to wait for one.
        os.eventfd_write(self.tickets, count)
        first = len(self.queue) - count
        for index in range(first, first + count):
            assignment = self.queue[index]
            payload: Payload = assignment.payload
            self._write_call(pieces, assignment, payload, self.head + index)
            if payload.file is not None:
                self.send(b"".join(pieces), payload.file)
                pieces.clear()
        if pieces:
            self.send(b"".join(pieces))

    def _write_call(self, pieces: list[bytes], assignment: Assignment, payload: Payload, seq: int) -> None:
        function = payload.function
        if function.number not in self._known:
            pieces.append(self._introduce(payload))
        part = self._parts.pop(assignment, b"") if self._parts else b""
        body = payload.body
        pieces.append(
            wire.HEADER.pack(
                len(body) + len(part),
                wire.CALL,
                payload.flags,
                assignment.number & 0xFFFF,
                seq & wire.WORD,
                function.number,
                payload.max_runtime,
                0.0,
            )
        )
        pieces.append(body)
        if part:
            pieces.append(part)

    def _introduce(self, payload: Payload) -> bytes:
        flags = 0
        if len(self._known) >= _MOST_FUNCTIONS and self.unsent + len(self.queue) == 1:
            # Only while no call before this one refers to what is forgotten.
            self._known.clear()
            flags = wire.FORGET
        function = payload.function
        if not function.once:
            self._known.add(function.number)
        header = wire.HEADER.pack(len(function.encoded), wire.FUNCTION, flags, 0, 0, function.number, 0.0, 0.0)
        return header + function.encoded

    # --- tickets ---

    def freeze(self) -> int:
        """Take all tickets, so that nothing begins until `thaw`; how many of the queue have begun (or ended)."""
        left = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                os.eventfd_read(self.tickets)
                left += 1
        return self.sent - left

    def thaw(self, count: int) -> None:
        if count > 0:
            os.eventfd_write(self.tickets, count)

    def void(self, index: int) -> list[Assignment]:
        """Take back all from `index` on, whose tickets are taken; in order."""
        sent = self.sent
        if index < sent:
            self.dropping = True
            seq = (self.head + index) & wire.WORD
            self.send(wire.HEADER.pack(0, wire.DROP, 0, 0, seq, 0, 0.0, 0.0))
        voided = [self.queue.pop() for _ in range(len(self.queue) - index)]
        self.unsent = max(0, len(self.queue) - sent)
        for assignment in voided:
            assignment.worker = None
            self._parts.pop(assignment, None)
        return voided[::-1]

    # --- the socket ---

    def send(self, frames: bytes, file: MemoryFile | None = None) -> None:
        if not self._backlog and file is None:
            try:
                sent = self.socket.send(frames)
            except BlockingIOError:
                sent = 0
            except OSError:  # it is dead, which its pidfd tells
                return
            if sent == len(frames):
                return
            self._backlog.append((memoryview(frames)[sent:], None))
        else:
            self._backlog.append((memoryview(frames), file))
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._backlog:
            frames, file = self._backlog[0]
            rights = [] if file is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fd]))]
            try:
                sent = self.socket.sendmsg([frames], rights)
            except BlockingIOError:
                self._supervisor.watch_writable(self.fd, self._send_waiting)
                return
            except OSError:
                self._backlog.clear()
                break
            if sent < len(frames):
                self._backlog[0] = (frames[sent:], None)
            else:
                self._backlog.popleft()
        if self.hears:
            self._supervisor.watch_writable(self.fd, None)

    def deafen(self) -> None:
        """Read its socket no more."""
        if self.hears:
            self.hears = False
            self._backlog.clear()
            self._supervisor.unwatch(self.fd)

    # --- its end ---

    def forked(self, pid: int, pidfd: int, on_dead: Callable[[], None]) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._supervisor.watch(pidfd, on_dead)
        if self.kill_wanted:
            self.kill()

    @property
    def is_forked(self) -> bool:
        """Whether its process is known, and its death would be seen."""
        return self._pidfd is not None

    def seen_dead(self) -> None:
        if self._pidfd is not None:
            self._supervisor.unwatch(self._pidfd)

    def terminate(self, assignment: Assignment, grace: float) -> None:
        """Ask it to end, for the sake of `assignment`, and make it after `grace` seconds."""
        self.stopping = assignment
        self.stop_at = time.monotonic()
        self.kill_at = self.stop_at + grace
        if grace > 0:
            self.guardian.terminate(self.number)
            self.call_after(grace, self.kill)
        else:
            self.kill()

    def hasten(self, grace: float) -> None:
        """It was asked again: the shorter grace counts."""
        if time.monotonic() + grace < self.kill_at:
            self.kill_at = time.monotonic() + grace
            self.call_after(grace, self.kill)

    def call_after(self, seconds: float, callback: Callable[[], None]) -> None:
        """One call at a time: it replaces the one before."""
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self._supervisor.call_at(self._supervisor.now() + seconds, callback)

    def signal(self, number: int) -> None:
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL, as soon as the process is known."""
        self.kill_wanted = self.let_go = True
        self.signal(signal.SIGKILL)

    def hang_up(self) -> None:
        """Let it exit once it has nothing to run. Reaches it even where a forked process holds our end too."""
        self.let_go = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.deafen()
        if self.timer is not None:
            self.timer.cancel()
        self.output.close()
        self.reader.close()
        self.socket.close()
        os.close(self.tickets)
        if self._pidfd is not None:
            self._supervisor.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    """Our end, which does not wait, and theirs."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, reader)
    undo.callback(os.close, writer)
    os.set_blocking(reader, False)
    return reader, writer
