"""The host's side of one spawned worker: its process, its socket, and the one call it may have."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import tempfile
import time
from typing import Any, Protocol

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.pools.transport.payload import Payload
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.pools.transport.worker_handle import WorkerHandle
from executor_adapter.worker import BOOTSTRAP, INTERRUPT, interpreter_command, own_presence, wire

_MIN_CHECK_INTERVAL, _MAX_CHECK_INTERVAL = 0.001, 0.1
"""Seconds between two checks whether a worker has died: longer the longer it takes."""
_GROUP_EXIT_TIMEOUT = 1.0
"""Seconds to wait for what a dead worker left in its process group, once it is killed: the system may be slow."""


class WorkerListener(Protocol):
    """Is notified of a worker's events, on the supervisor's thread."""

    def read_frames(self, worker: SpawnedWorkerHandle) -> Any:
        """Read the worker's socket."""

    def on_exit(self, worker: SpawnedWorkerHandle, returncode: int) -> None:
        """Take note that the worker has exited, and that nothing of its process group is alive. Called once."""


class SpawnedWorkerHandle(WorkerHandle):
    """One spawned worker. Its `queue` holds at most one assignment.

    Raises:
        OSError: the worker cannot be started.
    """

    def __init__(
        self, supervisor: PoolSupervisor, buffer: bytearray, listener: WorkerListener, settings: dict[str, Any]
    ) -> None:
        super().__init__(supervisor, buffer)
        self.call_started = False
        """Whether it has reported that its call started."""
        self.start_error: WorkerUnavailableError | None = None
        """Why it was killed before it was ready, if it took too long."""
        self._seq = 0
        self._listener = listener
        self._exit_check: Timer | None = None
        self._check_interval = _MIN_CHECK_INTERVAL
        self._group_wait_until: float | None = None
        self._open(settings)

    def _open(self, settings: dict[str, Any]) -> None:
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            ours, their_socket = socket.socketpair()
            undo.callback(ours.close)
            theirs.callback(their_socket.close)
            their_lifeline, self._lifeline = _pipe(theirs, undo)
            their_stdout, stdout = _pipe(theirs, undo, host_reads=True)
            their_stderr, stderr = _pipe(theirs, undo, host_reads=True)
            setup = settings | {"host": os.getpid(), "path": current_path(), "presence": own_presence().fds}
            fds = (their_socket.fileno(), their_lifeline, their_stdout, their_stderr)
            self._process = _start_process(fds, setup)
            undo.pop_all()
        self._connect(ours, stdout, stderr)
        self._supervisor.watch(self.fd, lambda: self._listener.read_frames(self))

    @property
    def pid(self) -> int:
        return self._process.pid

    # --- calls ---

    def send(self, assignment: Assignment, attempt_part: bytes, path: SharedPath) -> None:
        """Send a call. `attempt_part`: what belongs to this attempt only, pickled."""
        payload: Payload = assignment.payload
        self.queue.append(assignment)
        self.call_started = False
        self._seq += 1
        path.refresh()
        frames = (
            self.send_buffer.path_frame(path),
            self.send_buffer.function_frame(payload.function, may_forget=True),
            payload.header(assignment.number, self._seq, len(attempt_part)),
            payload.body,
            attempt_part,
        )
        self.send_buffer.send(b"".join(frames), payload.file)

    def assignment_of(self, seq: int) -> Assignment | None:
        return self.queue[0] if self.queue and seq == self._seq & wire.MAX_WORD else None

    # --- stopping ---

    def interrupt(self, assignment: Assignment) -> bool:
        if self.call_started and self._process.returncode is None:  # Until then no other process can have its pid.
            os.kill(self.pid, INTERRUPT)
        return self.call_started

    def kill(self) -> None:
        """Send SIGKILL to the process group. The listener is notified of the exit."""
        self.exit_expected = True
        self._signal_group(signal.SIGKILL)
        self._expect_exit()

    def give_up(self, error: WorkerUnavailableError) -> None:
        """Kill a worker that takes too long to be ready."""
        self.start_error = error
        self.kill()

    def _send_sigterm(self) -> None:
        self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    # --- exit ---

    def on_disconnect(self) -> None:
        """Expect the exit of a worker whose socket is closed."""
        self.stop_listening()
        self._expect_exit()

    def has_exited(self) -> bool:
        """Return whether its process has exited."""
        return self._process.poll() is not None

    def check_exit(self) -> None:
        """Notify the listener if the process and its whole group have exited; otherwise check again later."""
        if self.has_exited() and self._is_group_empty():
            self._listener.on_exit(self, self._process.returncode)
        else:
            self._schedule_check()

    def _expect_exit(self) -> None:
        self._check_interval = _MIN_CHECK_INTERVAL
        self._schedule_check()

    def _schedule_check(self) -> None:
        if self._exit_check is not None:
            self._exit_check.cancel()
        self._exit_check = self._supervisor.call_at(self._supervisor.now() + self._check_interval, self.check_exit)
        self._check_interval = min(2 * self._check_interval, _MAX_CHECK_INTERVAL)

    def _is_group_empty(self) -> bool:
        """Kill what is left of the process group, whose id stays in use as long as a process is in it."""
        now = time.monotonic()
        if self._group_wait_until is None:
            self._group_wait_until = now + _GROUP_EXIT_TIMEOUT
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # Some systems raise the second if only zombies are left.
            return True
        return now >= self._group_wait_until

    def close(self) -> None:
        super().close()
        if self._exit_check is not None:
            self._exit_check.cancel()
        os.close(self._lifeline)


def _pipe(theirs: contextlib.ExitStack, ours: contextlib.ExitStack, *, host_reads: bool = False) -> tuple[int, int]:
    """Return the worker's end of a new pipe, and the host's end, which does not block."""
    reader, writer = os.pipe()
    their_end, our_end = (writer, reader) if host_reads else (reader, writer)
    theirs.callback(os.close, their_end)
    ours.callback(os.close, our_end)
    os.set_blocking(our_end, False)
    return their_end, our_end


def _start_process(fds: tuple[int, ...], setup: dict[str, Any]) -> subprocess.Popen[bytes]:
    # A file, since arguments and environment variables have a size limit and other users can read them, and a pipe may
    # have no room for all of it.
    with tempfile.TemporaryFile() as file:
        file.write(pickle.dumps(setup, 5))
        file.seek(0)
        return subprocess.Popen(
            interpreter_command(BOOTSTRAP, *map(str, fds)),
            stdin=file,
            stdout=fds[2],
            stderr=fds[3],
            pass_fds=(*fds, *setup["presence"]),
            start_new_session=True,
        )
