"""The host's side of one forked worker: its calls, its tickets, its process."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
from collections.abc import Callable
from enum import Enum

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools.base import Assignment, PoolSupervisor
from executor_adapter.pools.guardian.client import NO_PIDFD, GuardianClient
from executor_adapter.pools.transport.payload import Payload, attempt_part
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.pools.transport.worker_handle import WorkerHandle
from executor_adapter.worker import INTERRUPT, resident, tree_resident, wire

MAX_CALLS_BEHIND = 8
"""Short calls that may be queued behind a running one."""


class CallState(Enum):
    """Names how far the worker is with an assignment in its queue."""

    WAITING = "not started"
    RUNNING = "started, and perhaps just ended"
    ENDED = "ended; its result is on its way"


class ForkedWorkerHandle(WorkerHandle):
    """One worker of the guardian. Its `queue` holds the assignments in the order it runs them.

    The last `unsent` assignments are not sent yet. Calls are numbered from 1 in the order they are sent, and `head` is
    the number of queue[0]. The numbers of calls taken back are used again once the worker has reported that it dropped
    them, so the numbers in the queue are always consecutive.
    """

    numbers = itertools.count(1)

    def __init__(self, supervisor: PoolSupervisor, buffer: bytearray, guardian: GuardianClient) -> None:
        super().__init__(supervisor, buffer)
        self.number = next(self.numbers) & wire.MAX_WORD
        self.guardian = guardian
        self.unsent = 0
        self.head = 1
        self.pid: int | None = None
        self.retired = False
        """Whether it gets no more calls, and exits soon."""
        self.dropping = False
        """Whether the worker was asked to drop calls and has not confirmed that yet."""
        self.worn = False
        """Whether the attempt that it has run was to be its only one."""
        self.lease_expired = False
        """Whether the guardian has ended it, because the host's lease was over; what it ran goes back to the queue."""
        self.kill_requested = False
        self.crash_cause: WorkerCrashedError | None = None
        """Why the host ended it, as the error of the job that it was running."""
        self.on_usable: Callable[[], None] | None = None
        """Called once when it is ready, or has died before."""
        self.rss_when_ready = 0
        self.free_since = 0.0
        """When the last call that it has reported ended."""
        self._attempt_parts: dict[Assignment, bytes] = {}
        """The pickled parts that belong to one attempt only, of the assignments that are not sent yet."""
        self._pidfd: int | None = None
        self._open()

    def _open(self) -> None:
        """Make the descriptors, ask the guardian for the process, and close the worker's ends here.

        Raises:
            OSError: no descriptor is left.
        """
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            undo.callback(theirs.close)
            self._tickets = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
            undo.callback(os.close, self._tickets)
            stdout, their_stdout = _pipe(undo)
            stderr, their_stderr = _pipe(undo)
            their_tickets = os.dup(self._tickets)
            undo.pop_all()
        self._connect(ours, stdout, stderr)
        self.guardian.fork(self.number, [theirs.detach(), their_tickets, their_stdout, their_stderr])

    # --- state ---

    @property
    def sent(self) -> int:
        """How many assignments of the queue are sent."""
        return len(self.queue) - self.unsent

    @property
    def is_forked(self) -> bool:
        """Whether its process is known."""
        return self._pidfd is not None

    @property
    def has_pidfd(self) -> bool:
        """Whether the host can send signals to its process."""
        return self._pidfd is not None and self._pidfd != NO_PIDFD

    def assignment_of(self, seq: int) -> Assignment | None:
        return self.queue[0] if self.queue and seq == self.head & wire.MAX_WORD else None

    def has_room(self, max_jobs: int) -> bool:
        """Return whether another short call may be queued behind those it has."""
        queue = self.queue
        return (
            len(queue) <= MAX_CALLS_BEHIND
            and self.ready
            and not (self.retired or self.dropping)
            and queue[-1].short
            and queue[0].short
            and queue[0].memory_limit is None
            and self.jobs_done + len(queue) < max_jobs
        )

    def is_worn(self, max_jobs: int, max_growth: int | None) -> bool:
        """Return whether it should be replaced.

        It has run an attempt that was to be its only one, or `max_jobs` calls, or has grown by over `max_growth` bytes,
        or cannot be interrupted since its pidfd was lost.
        """
        if self.worn or self.jobs_done >= max_jobs or self._pidfd == NO_PIDFD:
            return True
        if max_growth is None or self.pid is None:
            return False
        return resident(self.pid) > self.rss_when_ready + max_growth

    def left_behind(self) -> int:
        """Return how many bytes earlier jobs left in it and the processes below it; 0 if it is new."""
        return max(0, tree_resident(self.pid) - self.rss_when_ready) if self.jobs_done and self.pid is not None else 0

    # --- calls ---

    def assign(self, assignment: Assignment) -> None:
        """Add an assignment to the queue; `write` sends it.

        Raises:
            Exception: the argument of its scope cannot be pickled.
        """
        if (part := attempt_part(assignment)) != b"":
            self._attempt_parts[assignment] = part
        assignment.worker = self
        self.queue.append(assignment)
        self.unsent += 1

    def write(self, path: SharedPath) -> None:
        """Send the assignments that are not sent yet."""
        count, self.unsent = self.unsent, 0
        send_buffer = self.send_buffer
        pieces = [send_buffer.path_frame(path)]
        # Tickets first, so that a worker that has the frame need not wait for its ticket.
        os.eventfd_write(self._tickets, count)
        first = len(self.queue) - count
        for index in range(first, first + count):
            assignment = self.queue[index]
            payload: Payload = assignment.payload
            part = self._attempt_parts.pop(assignment, b"") if self._attempt_parts else b""
            pieces.append(send_buffer.function_frame(payload.function, may_forget=index == 0))
            pieces.append(payload.header(assignment.number, self.head + index, len(part)))
            pieces.append(payload.body)
            if part:
                pieces.append(part)
            if payload.file is not None:
                send_buffer.send(b"".join(pieces), payload.file)
                pieces.clear()
        if pieces:
            send_buffer.send(b"".join(pieces))

    # --- tickets (see `worker.process`) ---

    def take_back(self, assignment: Assignment, *, or_those_behind: bool = False) -> tuple[CallState, list[Assignment]]:
        """Take back an assignment that has not started, and those behind it. Return its state and those taken back.

        `or_those_behind`: if the assignment runs, take back those behind it, so that nothing follows it.
        """
        index = self.queue.index(assignment)
        started = self.take_tickets()
        first = len(self.queue)
        if index >= started:
            state, first = CallState.WAITING, index
        elif index < started - 1:
            state = CallState.ENDED
        else:
            state = CallState.RUNNING
            first = index + 1 if or_those_behind else first
        self._return_tickets(min(first, self.sent) - started)
        return state, self._remove_from(first)

    def interrupt(self, assignment: Assignment) -> bool:
        started, index = self.take_tickets(), self.queue.index(assignment)
        if index == started - 1:
            # Without tickets, no other call can start before the signal is pending.
            self._signal(INTERRUPT)
        self._return_tickets(self.sent - started)
        return index < started

    def take_tickets(self) -> int:
        """Take all tickets, so that no further call starts.

        Return how many assignments of the queue have started. The last of them may still run.
        """
        left = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                os.eventfd_read(self._tickets)
                left += 1
        return self.sent - left

    def _return_tickets(self, count: int) -> None:
        if count > 0:
            os.eventfd_write(self._tickets, count)

    def _remove_from(self, index: int) -> list[Assignment]:
        """Remove the assignments from `index` on, whose tickets are taken, from the queue."""
        sent = self.sent
        if index < sent:
            self.dropping = True
            self.send_buffer.send(wire.pack_frame(wire.DROP, seq=self.head + index))
        removed = [self.queue.pop() for _ in range(len(self.queue) - index)]
        self.unsent = max(0, len(self.queue) - sent)
        for assignment in removed:
            assignment.worker = None
            self._attempt_parts.pop(assignment, None)
        return removed[::-1]

    # --- process ---

    def set_process(self, pid: int, pidfd: int, on_death: Callable[[], None]) -> None:
        """Take over the process that the guardian forked; `on_death` is called when it dies, if there is a pidfd."""
        self.pid = pid
        self._pidfd = pidfd
        if pidfd != NO_PIDFD:
            self._supervisor.watch(pidfd, on_death)
        if self.kill_requested:
            self.kill()

    def stop_watching_process(self) -> None:
        """Do not call `on_death` again."""
        if self._pidfd is not None:
            self._supervisor.unwatch(self._pidfd)

    def kill(self) -> None:
        """Send SIGKILL as soon as the process is known."""
        self.kill_requested = self.exit_expected = True
        self._signal(signal.SIGKILL)

    def _send_sigterm(self) -> None:
        self.guardian.terminate_worker(self.number)

    def _signal(self, number: int) -> None:
        if self._pidfd == NO_PIDFD:
            if number == signal.SIGKILL:
                self.guardian.kill_worker(self.number)
        elif self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        super().close()
        os.close(self._tickets)
        if self._pidfd is not None and self._pidfd != NO_PIDFD:
            self._supervisor.unwatch(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None


def _pipe(undo: contextlib.ExitStack) -> tuple[int, int]:
    """Return the host's end of a new pipe, which does not block, and the worker's end."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    undo.callback(os.close, reader)
    undo.callback(os.close, writer)
    os.set_blocking(reader, False)
    return reader, writer
