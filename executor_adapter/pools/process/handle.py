"""The host's side of one worker: its calls, tickets, socket and pipes; and the contract of what launches processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import IO, Any, ClassVar

from executor_adapter.exceptions import WorkerCrashedError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.process.output import READ_DELAY, WorkerOutput
from executor_adapter.pools.transport.functions import EncodedFunction
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.pools.transport.payload import Payload, attempt_part
from executor_adapter.pools.transport.send_buffer import SendBuffer, SharedPath
from executor_adapter.worker import wire
from executor_adapter.worker.interpreter import CALL_MAIN, interpreter_command
from executor_adapter.worker.presence import own_presence

MAX_FUNCTIONS = 512
"""Functions that a worker keeps. When it has so many, it forgets all, and is sent again what it needs."""

_OUTPUT_READ_FRAME = wire.pack_frame(wire.OUTPUT_READ)

_TICKET_SIZE = 8


class CallState(Enum):
    """Names how far the worker is with an assignment in its queue."""

    WAITING = "not started"
    RUNNING = "started, and perhaps just ended"
    ENDED = "ended; its result is on its way"


class WorkerProcess(ABC):
    """The process of one worker, as its launcher knows it."""

    pid: int | None = None
    rss_when_ready = 0
    """Resident bytes when its worker was ready, as far as that is known."""
    can_be_interrupted = True
    """Whether the host's signals reach it."""

    @abstractmethod
    def kill(self) -> None:
        """Send SIGKILL as soon as the process is known. The launcher reports its exit."""

    @abstractmethod
    def terminate(self) -> None:
        """Send SIGTERM to its process group."""

    @abstractmethod
    def interrupt(self) -> None:
        """Send INTERRUPT."""

    def expect_exit(self) -> None:  # noqa: B027
        """Take note that the worker's socket is closed: it has died, or is about to."""

    def on_ready(self, pid: int) -> None:
        """Take note that the worker has started."""
        self.pid = pid

    def growth(self) -> int:
        """Return how many bytes more than when it was ready it holds, as far as that is known."""
        return 0

    def tree_growth(self) -> int:
        """Return the same of it and the processes below it together."""
        return 0

    def close(self) -> None:  # noqa: B027
        """Release what was held for the process, which has exited."""


class Launcher(ABC):
    """Starts the processes of a pool's workers, and sees their ends.

    It reports each end with `WorkerSet.on_worker_exit`, once nothing that the worker started is alive.
    """

    spawns: ClassVar[bool] = False
    """Whether a worker is an interpreter of its own: it gets no call before it is ready, and sees by the end of the
    pipe of its tickets that its host has died."""

    @abstractmethod
    def launch(self, worker: WorkerHandle, fds: list[int]) -> WorkerProcess:
        """Start a worker's process with its ends of socket, tickets, stdout and stderr, which are closed in any case.

        Raises:
            OSError: the system refuses one.
        """

    def may_start_spare(self) -> bool:
        """Return whether a worker may be started that no assignment waits for."""
        return True

    def set_lease(self, until: float) -> None:  # noqa: B027
        """Let the workers run until this `lease_time`, unless a later one is set by then."""

    def begin_closing(self) -> None:  # noqa: B027
        """Take note that all workers are being shut down."""

    def close(self, on_closed: Callable[[], None]) -> None:
        """Release what launches workers, of which none is left, and call `on_closed`."""
        on_closed()


def start_interpreter(
    module: str, fds: Sequence[int], settings: dict[str, Any], **options: Any
) -> subprocess.Popen[bytes]:
    """Start a process, in a session of its own, that calls `main(fds, setup)` of a module in `worker`.

    Its setup is `settings` (preload, initializer, nice, cpu_affinity, log_level), the host's pid, its sys.path, and the
    descriptors of its presence. `options`: of Popen.
    """
    held = own_presence().fds + settings["held_fds"]
    # A file, since arguments and environment variables have a size limit and other users can read them, and a pipe may
    # have no room for all of it.
    with _unnamed_file() as file:
        pickle.dump(settings | {"host": os.getpid(), "path": current_path(), "presence": held}, file)
        file.seek(0)
        return subprocess.Popen(
            interpreter_command(CALL_MAIN, module, *map(str, fds)),
            stdin=file,
            pass_fds=(*fds, *held),
            start_new_session=True,
            **options,
        )


def _unnamed_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # It needs no folder that can be written to.
        return open(os.memfd_create("executor-adapter-setup"), "w+b")
    return tempfile.TemporaryFile()


class Tickets:
    """The number of calls that a worker may start, see `worker.process`: an eventfd, or a pipe of eight bytes for each.

    Both are read in the same way: eight bytes are one ticket.
    """

    def __init__(self, *, in_pipe: bool) -> None:
        if in_pipe:
            self.reader, self._writer = os.pipe()
            os.set_blocking(self.reader, False)
            os.set_blocking(self._writer, False)
        else:
            self.reader = self._writer = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        self._in_pipe = in_pipe

    def add(self, count: int) -> None:
        """Add so many tickets."""
        if count > 0:
            as_number = count.to_bytes(_TICKET_SIZE, sys.byteorder)
            os.write(self._writer, bytes(_TICKET_SIZE * count) if self._in_pipe else as_number)

    def take_all(self) -> int:
        """Take the tickets that are left, and return how many those were."""
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while os.read(self.reader, _TICKET_SIZE):
                taken += 1
        return taken

    def close(self) -> None:
        """Close both ends."""
        for fd in {self.reader, self._writer}:
            os.close(fd)


class WorkerHandle:
    """One worker: the assignments in its `queue`, its socket and pipes, and the way it is stopped.

    The queue holds the assignments in the order it runs them; the last `unsent` are not sent yet. Calls are numbered
    from 1 in the order they are sent, and `head` is the number of queue[0]. The numbers of calls taken back are used
    again once the worker has reported that it dropped them, so the numbers in the queue are always consecutive.

    `buffer`: what is received is put there; the workers of its pool share it.

    Raises:
        OSError: no descriptor is left, or no process can be started.
    """

    numbers = itertools.count(1)

    def __init__(self, supervisor: PoolSupervisor, buffer: bytearray, launcher: Launcher) -> None:
        self.number = next(self.numbers) & wire.MAX_WORD
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
        self.dropping = 0
        """How often the worker was asked to drop calls, and has not confirmed that yet."""
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
        self._kill_at = 0.0
        self._kill_timer: Timer | None = None
        self._supervisor = supervisor
        self._path_version = 0
        self._functions: set[int] = set()
        """The numbers of the functions that the worker knows."""
        self._attempt_parts: dict[Assignment, bytes] = {}
        """The pickled parts that belong to one attempt only, of the assignments that are not sent yet."""
        with contextlib.ExitStack() as undo:
            sock, stdout_fd, stderr_fd = self._launch(launcher, undo)
            undo.pop_all()
        sock.setblocking(False)
        self._socket = sock
        self.fd = sock.fileno()
        self._send_buffer = SendBuffer(supervisor, sock)
        self.reader = wire.FrameReader(sock, buffer)
        self.output = WorkerOutput(supervisor, stdout_fd, stderr_fd, self.queue)

    def _launch(self, launcher: Launcher, undo: contextlib.ExitStack) -> tuple[socket.socket, int, int]:
        """Make the descriptors and the process that gets the other ends of them. Return the host's ends."""
        sock, their_socket = socket.socketpair()
        undo.callback(sock.close)
        with contextlib.ExitStack() as theirs:
            theirs.callback(their_socket.close)
            self._tickets = Tickets(in_pipe=launcher.spawns)
            undo.callback(self._tickets.close)
            stdout_fd, their_stdout = _pipe(undo, theirs)
            stderr_fd, their_stderr = _pipe(undo, theirs)
            their_tickets = os.dup(self._tickets.reader)
            theirs.pop_all()
        fds = [their_socket.detach(), their_tickets, their_stdout, their_stderr]
        self.process = launcher.launch(self, fds)
        return sock, stdout_fd, stderr_fd

    def read_output(self) -> None:
        """Read what the first assignment wrote; its worker begins nothing more before the output has room again."""
        self.output.drain()
        self._confirm_output()

    def _confirm_output(self) -> None:
        if self.output.is_full and self.listening:
            self._supervisor.call_at(self._supervisor.now() + READ_DELAY, self._confirm_output)
        elif self.listening:
            self._send_buffer.send(_OUTPUT_READ_FRAME)

    def on_ready(self, pid: int) -> None:
        """Take note that it has started."""
        self.ready = True
        self.process.on_ready(pid)

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
        queue = self.queue
        return (
            len(queue) <= queue[0].max_behind
            and len(queue) <= queue[-1].max_behind
            and self.ready
            and not (self.retired or self.dropping)
            and queue[0].memory_limit is None
            and self.jobs_done + len(queue) < max_jobs
        )

    def left_behind(self) -> int:
        """Return how many bytes earlier jobs left in it and the processes below it, as far as that is known."""
        return max(0, self.process.tree_growth()) if self.jobs_done else 0

    def assign(self, assignment: Assignment) -> None:
        """Add an assignment to the queue; `write` sends it.

        Raises:
            Exception: the argument of its scope cannot be pickled.
        """
        # Asked here too: most attempts have none of them, and a call takes as long as all the rest.
        if assignment.scope is not None or assignment.checkpoint is not None or assignment.environment is not None:
            self._attempt_parts[assignment] = attempt_part(assignment)
        assignment.worker = self
        self.queue.append(assignment)
        self.unsent += 1

    def write(self, path: SharedPath) -> None:
        """Send the assignments that are not sent yet."""
        count, self.unsent = self.unsent, 0
        # Tickets first, so that a worker that has the frame need not wait for its ticket.
        self._tickets.add(count)
        path.refresh()
        pieces = [] if self._path_version == path.version else [path.frame]
        self._path_version = path.version
        first = len(self.queue) - count
        for index in range(first, first + count):
            assignment = self.queue[index]
            payload: Payload = assignment.payload
            part = self._attempt_parts.pop(assignment, b"") if self._attempt_parts else b""
            if payload.function.number not in self._functions:
                pieces.append(self._function_frame(payload.function, may_forget=index == 0))
            pieces.append(
                wire.HEADER.pack(
                    len(payload.body) + len(part),
                    wire.CALL,
                    payload.flags,
                    assignment.number & 0xFFFF,
                    (self.head + index) & wire.MAX_WORD,
                    payload.function.number,
                    payload.max_runtime,
                    0.0,
                )
            )
            pieces.append(payload.body)
            if part:
                pieces.append(part)
            if payload.file is not None:
                self._send_buffer.send(b"".join(pieces), (payload.file.fd,), payload.file)
                pieces.clear()
        if pieces:
            self._send_buffer.send(b"".join(pieces))

    def _function_frame(self, function: EncodedFunction, *, may_forget: bool) -> bytes:
        """Return the frame that must precede a call of `function`, which the worker does not know.

        `may_forget`: no call that was sent before refers to a function the worker knows.
        """
        flags = 0
        if may_forget and len(self._functions) >= MAX_FUNCTIONS:
            self._functions.clear()
            flags = wire.FORGET_OTHERS
        if not function.once:
            self._functions.add(function.number)
        return wire.pack_frame(wire.FUNCTION, flags, word=function.number, body=function.encoded)

    def take_back(self, assignment: Assignment, *, or_those_behind: bool = False) -> tuple[CallState, list[Assignment]]:
        """Take back an assignment that has not started, and those behind it. Return its state and those taken back.

        `or_those_behind`: if the assignment runs, take back those behind it, so that nothing follows it.
        """
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
        self._tickets.add(min(first, self.sent) - started)
        return state, self._remove_from(first)

    def count_started(self) -> int:
        """Let no further call start, and return how many assignments of the queue have; the last may still run."""
        return self.sent - self._tickets.take_all()

    def _remove_from(self, index: int) -> list[Assignment]:
        """Remove the assignments from `index` on, whose tickets are taken, from the queue."""
        sent = self.sent
        if index < sent:
            self.dropping += 1
            self._send_buffer.send(wire.pack_frame(wire.DROP, seq=self.head + index))
        removed = [self.queue.pop() for _ in range(len(self.queue) - index)]
        self.unsent = max(0, len(self.queue) - sent)
        for assignment in removed:
            assignment.worker = None
            self._attempt_parts.pop(assignment, None)
        return removed[::-1]

    def take_all(self) -> list[Assignment]:
        """Take the assignments of a worker that has exited out of its queue."""
        left = list(self.queue)
        self.queue.clear()
        self.unsent = 0  # One may have been assigned in this turn, and be about to be sent.
        for assignment in left:
            assignment.worker = None
        return left

    # --- stopping ---

    def interrupt(self, assignment: Assignment) -> bool:
        """Raise SoftTimeoutError in the function of `assignment`, if it runs; return False if it has not begun."""
        started, index = self.count_started(), self.queue.index(assignment)
        if index == started - 1:
            # Without tickets, no other call can start before the signal is pending.
            self.process.interrupt()
        self._tickets.add(self.sent - started)
        return index < started

    def kill(self) -> None:
        """Send SIGKILL. The pool is notified of the exit."""
        self.kill_requested = self.exit_expected = True
        self.process.kill()

    def terminate(self, assignment: Assignment, grace: float) -> None:
        """Ask the worker to end, to stop `assignment`, and kill it after `grace` seconds."""
        self.stopping = assignment
        self._kill_at = self._supervisor.now() + grace
        if grace > 0:
            self.process.terminate()
            self._kill_after(grace)
        else:
            self.kill()

    def shorten_grace(self, grace: float) -> None:
        """Kill the worker after `grace` seconds if that is earlier than before."""
        if (kill_at := self._supervisor.now() + grace) < self._kill_at:
            self._kill_at = kill_at
            self._kill_after(grace)

    def ended_before_stop(self, ended: float) -> bool:
        """Return whether the stopped function, which ended at `ended`, had done so before it was asked to.

        The worker is killed in any case, since what the function started must end too.
        """
        self.kill()
        running = self.queue[0]
        if running.stop_asked_at is not None and ended > running.stop_asked_at:
            return False
        self.stopping = running.stop_asked_at = None
        return True

    def request_exit(self) -> None:
        """Let the worker exit after the calls it has, and kill it if it does not do so in time."""
        self.exit_expected = True
        with contextlib.suppress(OSError):
            # Unlike `close`, this is seen by the worker though a forked process holds the host's end open too.
            self._socket.shutdown(socket.SHUT_WR)
        self._kill_after(wire.EXIT_SECONDS)

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
            self._send_buffer.discard()
            self._supervisor.unwatch(self.fd)

    def close(self) -> None:
        """Release everything that was held for the worker, which has exited."""
        self.stop_listening()
        if self._kill_timer is not None:
            self._kill_timer.cancel()
        self.output.close()
        self.reader.close()
        self._socket.close()
        self._tickets.close()
        self.process.close()


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
    """Return the host's end of a new pipe, which does not block, and the worker's end."""
    reader, writer = os.pipe()
    ours.callback(os.close, reader)
    theirs.callback(os.close, writer)
    os.set_blocking(reader, False)
    return reader, writer
