"""The host's side of one worker: its calls, its tickets, its socket."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from enum import Enum

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.guardian.client import NO_PIDFD, Guardian
from executor_adapter.pools.transport import functions
from executor_adapter.pools.transport.output import Output
from executor_adapter.pools.transport.payload import Payload
from executor_adapter.pools.transport.send_buffer import Outbox, SharedPath
from executor_adapter.worker import wire
from executor_adapter.worker.process import INTERRUPT
from executor_adapter.worker.process_tree import resident, tree_resident

RECEIVE_BUFFER = bytearray(1 << 18)
"""Shared: all sockets are read by the supervisor's thread, and what is read is used up before the next read."""


PIPELINE_DEPTH = 8
"""Short calls that may lie ready behind a running one."""


class Standing(Enum):
    """How far the worker is with an assignment in its queue."""

    WAITING = "not begun"
    RUNNING = "begun, and perhaps just over"
    OVER = "over: its result is on its way"


class WorkerHandle:
    """One worker. `queue` holds its assignments in the order it runs them; the last `unsent` are not sent yet.

    Calls are numbered from 1 in the order they are sent; `head` is the number of queue[0]. Numbers of calls taken back
    are given out again, once the worker has said that it dropped them, so those in the queue always follow one another.
    """

    numbers = itertools.count(1)

    def __init__(self, supervisor: PoolSupervisor, guardian: Guardian) -> None:
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
        self._supervisor = supervisor
        self._parts: dict[Assignment, bytes] = {}
        self._pidfd: int | None = None
        self._open()

    def left_behind(self) -> int:
        """Bytes that its process and those below it hold beyond what it held when it was ready; 0 where it is new."""
        return max(0, tree_resident(self.pid) - self.first_rss) if self.done and self.pid is not None else 0

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
        self.outbox = Outbox(self._supervisor, self.socket)
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

    def takes_another(self, max_jobs: int) -> bool:
        """Whether another short call may be laid behind those it has."""
        queue = self.queue
        return (
            len(queue) <= PIPELINE_DEPTH
            and self.ready
            and not (self.doomed or self.dropping)
            and queue[-1].short
            and queue[0].short
            and queue[0].memory_limit is None
            and self.done + len(queue) < max_jobs
        )

    def is_worn(self, max_jobs: int, max_growth: int | None) -> bool:
        """Whether it is to be replaced: it has run so many calls, or grown by so many bytes, or we have no pidfd of it,
        so that it cannot be interrupted."""
        if self.done >= max_jobs or self._pidfd == NO_PIDFD:
            return True
        if max_growth is None or self.pid is None:
            return False
        return resident(self.pid) > self.first_rss + max_growth

    def give(self, assignment: Assignment) -> None:
        """Take an assignment, to be sent by `write`.

        Raises:
            Exception: the argument of its scope cannot be pickled.
        """
        if assignment.scope is not None or assignment.checkpoint is not None:
            self._parts[assignment] = functions.dumps((assignment.scope, assignment.checkpoint))
        assignment.worker = self
        self.queue.append(assignment)
        self.unsent += 1

    def write(self, path: SharedPath) -> None:
        """Send what was given since the last time."""
        count, self.unsent = self.unsent, 0
        outbox = self.outbox
        pieces = [outbox.path(path)]
        # Tickets first: a worker that has the frame must not find that it needs to wait for one.
        os.eventfd_write(self.tickets, count)
        first = len(self.queue) - count
        for index in range(first, first + count):
            assignment = self.queue[index]
            payload: Payload = assignment.payload
            part = self._parts.pop(assignment, b"") if self._parts else b""
            pieces.append(outbox.introduce(payload.function, may_forget=index == 0))
            pieces.append(payload.header(assignment.number, self.head + index, len(part)))
            pieces.append(payload.body)
            if part:
                pieces.append(part)
            if payload.file is not None:
                outbox.send(b"".join(pieces), payload.file)
                pieces.clear()
        if pieces:
            outbox.send(b"".join(pieces))

    # --- tickets (see `worker`) ---

    def take_back(self, assignment: Assignment, *, or_those_behind: bool = False) -> tuple[Standing, list[Assignment]]:
        """Take back an assignment that has not begun, with those behind it, in order; how it stood.

        `or_those_behind`: of one that runs, take back those behind it, so that nothing follows it.
        """
        index = self.queue.index(assignment)
        begun = self.freeze()
        first = len(self.queue)
        if index >= begun:
            standing, first = Standing.WAITING, index
        elif index < begun - 1:
            standing = Standing.OVER
        else:
            standing = Standing.RUNNING
            first = index + 1 if or_those_behind else first
        self._thaw(min(first, self.sent) - begun)
        return standing, self._void(first)

    def interrupt(self, assignment: Assignment) -> None:
        """Raise SoftTimeoutError in it, if it runs."""
        begun = self.freeze()
        if self.queue.index(assignment) == begun - 1:
            # Nothing else can begin before the signal is pending.
            self._signal(INTERRUPT)
        self._thaw(self.sent - begun)

    def freeze(self) -> int:
        """Take all tickets, so that nothing more begins; how many of the queue have begun, the last of them perhaps
        running still."""
        left = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                os.eventfd_read(self.tickets)
                left += 1
        return self.sent - left

    def _thaw(self, count: int) -> None:
        if count > 0:
            os.eventfd_write(self.tickets, count)

    def _void(self, index: int) -> list[Assignment]:
        """Take all from `index` on, whose tickets are taken, out of the queue."""
        sent = self.sent
        if index < sent:
            self.dropping = True
            self.outbox.send(wire.frame(wire.DROP, seq=self.head + index))
        voided = [self.queue.pop() for _ in range(len(self.queue) - index)]
        self.unsent = max(0, len(self.queue) - sent)
        for assignment in voided:
            assignment.worker = None
            self._parts.pop(assignment, None)
        return voided[::-1]

    # --- the socket ---

    def deafen(self) -> None:
        """Read its socket no more."""
        if self.hears:
            self.hears = False
            self.outbox.discard()
            self._supervisor.unwatch(self.fd)

    # --- its end ---

    def forked(self, pid: int, pidfd: int, on_dead: Callable[[], None]) -> None:
        self.pid = pid
        self._pidfd = pidfd
        if pidfd != NO_PIDFD:
            self._supervisor.watch(pidfd, on_dead)
        if self.kill_wanted:
            self.kill()

    @property
    def is_forked(self) -> bool:
        """Whether its process is known."""
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

    def _signal(self, number: int) -> None:
        if self._pidfd == NO_PIDFD:
            if number == signal.SIGKILL:
                self.guardian.kill_worker(self.number)
        elif self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """SIGKILL, as soon as the process is known."""
        self.kill_wanted = self.let_go = True
        self._signal(signal.SIGKILL)

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
        if self._pidfd is not None and self._pidfd != NO_PIDFD:
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
