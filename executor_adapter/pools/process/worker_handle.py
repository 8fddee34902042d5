"""The host's side of one worker process, as far as forked and spawned workers are alike."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from enum import Enum

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.process.output import READ_DELAY, WorkerOutput
from executor_adapter.pools.transport.payload import Payload, attempt_part
from executor_adapter.pools.transport.send_buffer import SendBuffer, SharedPath
from executor_adapter.worker import wire

_RECEIVE_SIZE = 1 << 18
"""Bytes that are received at once."""

_OUTPUT_READ_FRAME = wire.pack_frame(wire.OUTPUT_READ)

_EXIT_TIMEOUT = 1.0
"""Seconds after which a worker that was asked to exit is killed."""


def make_receive_buffer() -> bytearray:
    """Return the buffer for the sockets of one pool.

    Its workers may share it: the supervisor's thread reads them, and uses up what it read before it reads again. Pools
    of several executors must not, since a thread that has read may wait for the GIL while another one reads.
    """
    return bytearray(_RECEIVE_SIZE)


class CallState(Enum):
    """Names how far the worker is with an assignment in its queue."""

    WAITING = "not started"
    RUNNING = "started, and perhaps just ended"
    ENDED = "ended; its result is on its way"


class WorkerHandle(ABC):
    """One worker: the assignments in its `queue`, its socket and pipes, and the way it is stopped.

    The queue holds the assignments in the order it runs them; the last `unsent` are not sent yet. Calls are numbered
    from 1 in the order they are sent, and `head` is the number of queue[0].

    `buffer`: that of its pool, see `make_receive_buffer`.
    """

    numbers = itertools.count(1)

    def __init__(self, supervisor: PoolSupervisor, buffer: bytearray) -> None:
        self.number = next(self.numbers) & wire.MAX_WORD
        self.pid: int | None = None
        self.queue: deque[Assignment] = deque()
        self.unsent = 0
        self.head = 1
        self.jobs_done = 0
        self.free_since = 0.0
        """When the last call that it has reported ended."""
        self.ready = False
        """Whether it has started and can run calls."""
        self.retired = False
        """Whether it gets no more calls, and exits soon."""
        self.worn = False
        """Whether the attempt that it has run was to be its only one."""
        self.call_started = False
        """Whether it has reported that its call started, if it has no tickets."""
        self.dropping = False
        """Whether the worker was asked to drop calls and has not confirmed that yet."""
        self.lease_expired = False
        """Whether the guardian has ended it, because the host's lease was over; what it ran goes back to the queue."""
        self.kill_requested = False
        self.crash_cause: WorkerCrashedError | None = None
        """Why the host ended it, as the error of the job that it was running."""
        self.on_usable: Callable[[], None] | None = None
        """Called once when it is ready, or has died before."""
        self.listening = True
        """Whether its socket is read."""
        self.exit_expected = False
        """Whether the host made it exit, so that its exit is not a failure of its own."""
        self.stopping: Assignment | None = None
        """The assignment for whose sake it was asked to end."""
        self._stopped_at = 0.0
        self._kill_at = 0.0
        self._kill_timer: Timer | None = None
        self._supervisor = supervisor
        self._buffer = buffer
        self._attempt_parts: dict[Assignment, bytes] = {}
        """The pickled parts that belong to one attempt only, of the assignments that are not sent yet."""

    def _connect(self, sock: socket.socket, stdout_fd: int, stderr_fd: int) -> None:
        """Use the host's ends of the worker's socket and pipes."""
        sock.setblocking(False)
        self._socket = sock
        self.fd = sock.fileno()
        self.send_buffer = SendBuffer(self._supervisor, sock)
        self.reader = wire.FrameReader(sock, self._buffer)
        self.output = WorkerOutput(self._supervisor, stdout_fd, stderr_fd, self.queue)

    def read_output(self) -> None:
        """Read what the first assignment wrote; its worker begins nothing more before the output has room again."""
        self.output.drain()
        self._confirm_output()

    def _confirm_output(self) -> None:
        if self.output.is_full and self.listening:
            self._supervisor.call_at(self._supervisor.now() + READ_DELAY, self._confirm_output)
        elif self.listening:
            self.send_buffer.send(_OUTPUT_READ_FRAME)

    def on_ready(self, pid: int) -> None:
        """Take note that it has started."""
        self.ready, self.pid = True, pid

    # --- calls ---

    @property
    def sent(self) -> int:
        """How many assignments of the queue are sent."""
        return len(self.queue) - self.unsent

    def assignment_of(self, seq: int) -> Assignment | None:
        """Return the running assignment, if `seq` is the number of its call."""
        return self.queue[0] if self.queue and seq == self.head & wire.MAX_WORD else None

    def has_room(self, max_jobs: int) -> bool:
        """Return whether another short call may be queued behind those it has."""
        return False

    def is_worn(self, max_jobs: int, max_growth: int | None) -> bool:
        """Return whether it should be replaced: it has run an attempt that was to be its only one, or enough calls."""
        return self.worn or self.jobs_done >= max_jobs

    def left_behind(self) -> int:
        """Return how many bytes earlier jobs left in it and the processes below it, as far as that is known."""
        return 0

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

    @abstractmethod
    def write(self, path: SharedPath) -> None:
        """Send the assignments that are not sent yet, if it takes them now."""

    def _send_calls(self, count: int, path: SharedPath) -> None:
        """Send the last `count` assignments of the queue."""
        send_buffer = self.send_buffer
        pieces = [send_buffer.path_frame(path)]
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

    @abstractmethod
    def take_back(self, assignment: Assignment, *, or_those_behind: bool = False) -> tuple[CallState, list[Assignment]]:
        """Take back an assignment that has not started, and those behind it. Return its state and those taken back.

        `or_those_behind`: if the assignment runs, take back those behind it, so that nothing follows it.
        """

    @abstractmethod
    def count_started(self) -> int:
        """Let no further call start, and return how many assignments of the queue have; the last may still run."""

    # --- stopping ---

    @abstractmethod
    def kill(self) -> None:
        """Send SIGKILL. The pool is notified of the exit."""

    @abstractmethod
    def _send_sigterm(self) -> None:
        """Send SIGTERM to the worker's process group."""

    @abstractmethod
    def interrupt(self, assignment: Assignment) -> bool:
        """Raise SoftTimeoutError in the function of `assignment`, if it runs; return False if it has not begun."""

    def terminate(self, assignment: Assignment, grace: float) -> None:
        """Ask the worker to end, to stop `assignment`, and kill it after `grace` seconds."""
        self.stopping = assignment
        self._stopped_at = time.monotonic()
        self._kill_at = self._stopped_at + grace
        if grace > 0:
            self._send_sigterm()
            self._kill_after(grace)
        else:
            self.kill()

    def shorten_grace(self, grace: float) -> None:
        """Kill the worker after `grace` seconds if that is earlier than before."""
        if time.monotonic() + grace < self._kill_at:
            self._kill_at = time.monotonic() + grace
            self._kill_after(grace)

    def ended_before_stop(self, ended: float) -> bool:
        """Return whether the stopped function, which ended at `ended`, had done so before it was asked to.

        The worker is killed in any case, since what the function started must end too.
        """
        self.kill()
        if ended > self._stopped_at:
            return False
        self.stopping = self.queue[0].stop_asked_at = None
        return True

    def request_exit(self) -> None:
        """Let the worker exit after the calls it has, and kill it if it does not do so in time."""
        self.exit_expected = True
        with contextlib.suppress(OSError):
            # Unlike `close`, this is seen by the worker though a forked process holds the host's end open too.
            self._socket.shutdown(socket.SHUT_WR)
        self._kill_after(_EXIT_TIMEOUT)

    def _kill_after(self, seconds: float) -> None:
        """Kill the worker in `seconds`, and not when it was planned before."""
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self._kill_timer = self._supervisor.call_at(self._supervisor.now() + seconds, self.kill)

    # --- closing ---

    def stop_listening(self) -> None:
        """Stop reading its socket, and send nothing more."""
        if self.listening:
            self.listening = False
            self.send_buffer.discard()
            self._supervisor.unwatch(self.fd)

    def close(self) -> None:
        """Release everything that was held for the worker, which has exited."""
        self.stop_listening()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self.output.close()
        self.reader.close()
        self._socket.close()
