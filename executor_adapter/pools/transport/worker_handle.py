"""The host's side of one worker process, as far as forked and spawned workers are alike."""

from __future__ import annotations

import contextlib
import socket
import time
from abc import ABC, abstractmethod
from collections import deque

from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.transport.output import READ_DELAY, WorkerOutput
from executor_adapter.pools.transport.send_buffer import SendBuffer
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


class WorkerHandle(ABC):
    """One worker: the assignments in its `queue`, its socket and pipes, and the way it is stopped.

    `buffer`: that of its pool, see `make_receive_buffer`.
    """

    def __init__(self, supervisor: PoolSupervisor, buffer: bytearray) -> None:
        self.queue: deque[Assignment] = deque()
        self.jobs_done = 0
        self.ready = False
        """Whether it has started and can run calls."""
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

    @abstractmethod
    def assignment_of(self, seq: int) -> Assignment | None:
        """Return the running assignment, if `seq` is the number of its call."""

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
