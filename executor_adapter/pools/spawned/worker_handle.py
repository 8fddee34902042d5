"""The host's side of one spawned worker: its process, its socket, and the one call it may have."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from typing import Any, Protocol

from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.transport.importable import current_path
from executor_adapter.pools.transport.output import Output
from executor_adapter.pools.transport.payload import Payload
from executor_adapter.pools.transport.send_buffer import Outbox, SharedPath
from executor_adapter.worker import wire
from executor_adapter.worker.presence import presence
from executor_adapter.worker.process import INTERRUPT
from executor_adapter.worker.spawned import BOOTSTRAP

RECEIVE_BUFFER = bytearray(1 << 18)
"""Shared: all sockets are read by the supervisor's thread, and what is read is used up before the next read."""

_LEAVE_PATIENCE = 1.0
"""Seconds for a worker that was told to leave."""
_SOONEST_LOOK, _LATEST_LOOK = 0.001, 0.1
"""Seconds between two looks whether a worker has died, the later the longer it takes."""
_GROUP_PATIENCE = 1.0
"""Seconds for what a dead worker left in its group to be gone, once killed: the system may be slow to bury it."""


class Listener(Protocol):
    """Told of its workers; all on the supervisor's thread."""

    def on_frames(self, worker: SpawnedProcess) -> None:
        """Its socket can be read."""

    def on_gone(self, worker: SpawnedProcess, returncode: int) -> None:
        """It has exited so (as of subprocess), and nothing of its process group is alive. Told once."""


class SpawnedProcess:
    """One worker. `queue` holds its assignment, while it has one.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, supervisor: PoolSupervisor, listener: Listener, settings: dict[str, Any]) -> None:
        self.queue: deque[Assignment] = deque()
        self.seq = 0
        """The number of its call."""
        self.begun = False
        """It has said that it began its call."""
        self.done = 0
        self.ready = False
        self.let_go = False
        """We had it end: that it did so is no failure of its own."""
        self.hears = True
        """Its socket is watched."""
        self.stopping: Assignment | None = None
        self.stop_at = 0.0
        self._kill_at = 0.0
        self._supervisor = supervisor
        self._listener = listener
        self._timer: Timer | None = None
        self._death_timer: Timer | None = None
        self._next_look = _SOONEST_LOOK
        self._empty_by: float | None = None
        self._open(settings)

    def _open(self, settings: dict[str, Any]) -> None:
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            self.socket, their_socket = socket.socketpair()
            undo.callback(self.socket.close)
            theirs.callback(their_socket.close)
            their_lifeline, self._lifeline = _pipe(theirs, undo)
            their_stdout, stdout = _pipe(theirs, undo, we_read=True)
            their_stderr, stderr = _pipe(theirs, undo, we_read=True)
            setup = settings | {"host": os.getpid(), "path": current_path(), "presence": presence().fds}
            fds = (their_socket.fileno(), their_lifeline, their_stdout, their_stderr)
            self._process = _spawn(fds, setup)
            undo.pop_all()
        self.socket.setblocking(False)
        self.fd = self.socket.fileno()
        self.outbox = Outbox(self._supervisor, self.socket)
        self.reader = wire.FrameReader(self.socket, RECEIVE_BUFFER)
        self.output = Output(self._supervisor, stdout, stderr, self.queue)
        self._supervisor.watch(self.fd, lambda: self._listener.on_frames(self))

    @property
    def pid(self) -> int:
        return self._process.pid

    # --- its call ---

    def send(self, assignment: Assignment, rest: bytes, path: SharedPath) -> None:
        """Send it a call; `rest` is what is of this attempt alone, pickled."""
        payload: Payload = assignment.payload
        self.queue.append(assignment)
        self.begun = False
        self.seq += 1
        path.look()
        frames = (
            self.outbox.path(path),
            self.outbox.introduce(payload.function, may_forget=True),
            payload.header(assignment.number, self.seq, len(rest)),
            payload.body,
            rest,
        )
        self.outbox.send(b"".join(frames), payload.file)

    def speaker(self, seq: int) -> Assignment | None:
        return self.queue[0] if self.queue and seq == self.seq & wire.WORD else None

    # --- its end ---

    def terminate(self, grace: float) -> None:
        """Ask it to end, for the sake of its assignment, and make it after `grace` seconds."""
        self.stopping = self.queue[0]
        self.stop_at = time.monotonic()
        self._kill_at = self.stop_at + grace
        if grace > 0:
            self._signal_group(signal.SIGTERM)
            self._call_after(grace)
        else:
            self.kill()

    def hasten(self, grace: float) -> None:
        """It was asked again: the shorter grace counts."""
        if time.monotonic() + grace < self._kill_at:
            self._kill_at = time.monotonic() + grace
            self._call_after(grace)

    def interrupt(self) -> None:
        """Raise SoftTimeoutError in the function."""
        # Its id is its own until we have waited for it.
        if self._process.returncode is None:
            os.kill(self.pid, INTERRUPT)

    def kill(self) -> None:
        """SIGKILL, to its whole group."""
        self.let_go = True
        self._signal_group(signal.SIGKILL)
        self._look_soon()

    def hang_up(self) -> None:
        """Let it exit, since it has nothing to run."""
        self.let_go = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
        self._call_after(_LEAVE_PATIENCE)

    def _call_after(self, seconds: float) -> None:
        """Kill it then, and not earlier."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._supervisor.call_at(self._supervisor.now() + seconds, self.kill)

    def _signal_group(self, number: int) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def lose_touch(self) -> None:
        """Its end of the socket is closed: it is dead, or the function closed it, and then it will be."""
        self.deafen()
        self._look_soon()

    def is_dead(self) -> bool:
        return self._process.poll() is not None

    def _look_soon(self) -> None:
        self._next_look = _SOONEST_LOOK
        self._look_later()

    def look(self) -> None:
        """See whether it is dead, with all of its group, and tell; else look again."""
        if self.is_dead() and self._is_group_empty():
            self._listener.on_gone(self, self._process.returncode)
        else:
            self._look_later()

    def _look_later(self) -> None:
        if self._death_timer is not None:
            self._death_timer.cancel()
        self._death_timer = self._supervisor.call_at(self._supervisor.now() + self._next_look, self.look)
        self._next_look = min(2 * self._next_look, _LATEST_LOOK)

    def _is_group_empty(self) -> bool:
        """Kill what is left of the group; its id stays taken as long as there is anything."""
        now = time.monotonic()
        if self._empty_by is None:
            self._empty_by = now + _GROUP_PATIENCE
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # the second, on some systems, where only zombies are left
            return True
        return now >= self._empty_by

    def deafen(self) -> None:
        """Read its socket no more."""
        if self.hears:
            self.hears = False
            self.outbox.discard()
            self._supervisor.unwatch(self.fd)

    def close(self) -> None:
        """It is gone: let go of all that was for it."""
        self.deafen()
        for timer in (self._timer, self._death_timer):
            if timer is not None:
                timer.cancel()
        self.output.close()
        self.reader.close()
        self.socket.close()
        os.close(self._lifeline)


def _pipe(theirs: contextlib.ExitStack, ours: contextlib.ExitStack, *, we_read: bool = False) -> tuple[int, int]:
    """Their end and ours of a pipe. Where we read, we do not wait."""
    reader, writer = os.pipe()
    their_end, our_end = (writer, reader) if we_read else (reader, writer)
    theirs.callback(os.close, their_end)
    ours.callback(os.close, our_end)
    os.set_blocking(our_end, False)
    return their_end, our_end


def _spawn(fds: tuple[int, ...], setup: dict[str, Any]) -> subprocess.Popen[bytes]:
    # A file: arguments and variables have a size limit, and are there for all to see; a pipe might be full.
    with tempfile.TemporaryFile() as file:
        file.write(pickle.dumps(setup, 5))
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP, *map(str, fds)],
            stdin=file,
            stdout=fds[2],
            stderr=fds[3],
            pass_fds=(*fds, *setup["presence"]),
            start_new_session=True,
        )
