"""The host's side of one forked worker: its calls, its tickets, its process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable

from executor_adapter.pools.base import Assignment, PoolSupervisor
from executor_adapter.pools.process.guardian import NO_PIDFD, GuardianClient
from executor_adapter.pools.process.worker_handle import CallState, WorkerHandle
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.worker import INTERRUPT, resident, tree_resident, wire

MAX_CALLS_BEHIND = 8
"""Short calls that may be queued behind a running one."""


class ForkedWorkerHandle(WorkerHandle):
    """One worker of the guardian, which may have several calls.

    The numbers of calls taken back are used again once the worker has reported that it dropped them, so the numbers in
    the queue are always consecutive.
    """

    def __init__(self, supervisor: PoolSupervisor, buffer: bytearray, guardian: GuardianClient) -> None:
        super().__init__(supervisor, buffer)
        self.guardian = guardian
        self.rss_when_ready = 0
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
    def is_forked(self) -> bool:
        """Whether its process is known."""
        return self._pidfd is not None

    @property
    def has_pidfd(self) -> bool:
        """Whether the host can send signals to its process."""
        return self._pidfd is not None and self._pidfd != NO_PIDFD

    def on_ready(self, pid: int) -> None:
        super().on_ready(pid)
        self.rss_when_ready = resident(pid)

    def has_room(self, max_jobs: int) -> bool:
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
        # Without a pidfd it cannot be interrupted.
        if super().is_worn(max_jobs, max_growth) or self._pidfd == NO_PIDFD:
            return True
        if max_growth is None or self.pid is None:
            return False
        return resident(self.pid) > self.rss_when_ready + max_growth

    def left_behind(self) -> int:
        return max(0, tree_resident(self.pid) - self.rss_when_ready) if self.jobs_done and self.pid is not None else 0

    # --- calls ---

    def write(self, path: SharedPath) -> None:
        count, self.unsent = self.unsent, 0
        # Tickets first, so that a worker that has the frame need not wait for its ticket.
        os.eventfd_write(self._tickets, count)
        self._send_calls(count, path)

    # --- tickets (see `worker.process`) ---

    def take_back(self, assignment: Assignment, *, or_those_behind: bool = False) -> tuple[CallState, list[Assignment]]:
        index = self.queue.index(assignment)
        started = self.count_started()
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
        started, index = self.count_started(), self.queue.index(assignment)
        if index == started - 1:
            # Without tickets, no other call can start before the signal is pending.
            self._signal(INTERRUPT)
        self._return_tickets(self.sent - started)
        return index < started

    def count_started(self) -> int:
        # Without tickets no further call starts.
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
