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
from collections.abc import Callable
from typing import Any

from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.process.worker_handle import CallState, WorkerHandle
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.pools.transport.send_buffer import SharedPath
from executor_adapter.worker import BOOTSTRAP, INTERRUPT, interpreter_command, own_presence

_MIN_CHECK_INTERVAL, _MAX_CHECK_INTERVAL = 0.001, 0.1
"""Seconds between two checks whether a worker has died: longer the longer it takes."""
_GROUP_EXIT_TIMEOUT = 1.0
"""Seconds to wait for what a dead worker left in its process group, once it is killed: the system may be slow."""


class SpawnedWorkerHandle(WorkerHandle):
    """One spawned worker. Its `queue` holds at most one assignment.

    `on_exit(number, returncode)` is called once, when it has exited and nothing of its process group is alive.

    Raises:
        OSError: the worker cannot be started.
    """

    def __init__(
        self,
        supervisor: PoolSupervisor,
        buffer: bytearray,
        settings: dict[str, Any],
        on_exit: Callable[[int, int], None],
    ) -> None:
        super().__init__(supervisor, buffer)
        self._on_exit = on_exit
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
            setup = settings | {
                "host": os.getpid(),
                "path": current_path(),
                "presence": own_presence().fds + settings["held_fds"],
            }
            fds = (their_socket.fileno(), their_lifeline, their_stdout, their_stderr)
            self._process = _start_process(fds, setup)
            undo.pop_all()
        self.pid = self._process.pid
        self._connect(ours, stdout, stderr)

    # --- calls ---

    def write(self, path: SharedPath) -> None:
        if self.ready:  # Until then its assignment can be taken back, since it has no tickets.
            self.unsent, self.call_started = 0, False
            self._send_calls(1, path)

    def take_back(self, assignment: Assignment, *, or_those_behind: bool = False) -> tuple[CallState, list[Assignment]]:
        if not self.unsent:
            return CallState.RUNNING, []
        self.unsent = 0
        self.queue.clear()
        self._attempt_parts.clear()
        assignment.worker = None
        return CallState.WAITING, [assignment]

    def count_started(self) -> int:
        return 0 if self.unsent else int(self.call_started or self.stopping is not None)

    # --- stopping ---

    def interrupt(self, assignment: Assignment) -> bool:
        if self.call_started and self._process.returncode is None:  # Until then no other process can have its pid.
            os.kill(self._process.pid, INTERRUPT)
        return self.call_started

    def kill(self) -> None:
        """Send SIGKILL to the process group."""
        self.kill_requested = self.exit_expected = True
        self._signal_group(signal.SIGKILL)
        self.expect_exit()

    def request_exit(self) -> None:
        if self.ready:
            super().request_exit()
        else:
            self.kill()  # It has run no function that might clean up.

    def _send_sigterm(self) -> None:
        self._signal_group(signal.SIGTERM)

    def _signal_group(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    # --- exit ---

    def has_exited(self) -> bool:
        """Return whether its process has exited."""
        return self._process.poll() is not None

    def check_exit(self) -> None:
        """Report the exit if the process and its whole group have exited; otherwise check again later."""
        if self.has_exited() and self._is_group_empty():
            self._on_exit(self.number, self._process.returncode)
        else:
            self._schedule_check()

    def expect_exit(self) -> None:
        """Look from now on whether it has exited."""
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
            os.killpg(self._process.pid, signal.SIGKILL)
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
