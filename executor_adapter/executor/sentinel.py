"""The host's side of the sentinel: starts it, and sends it the ids of this process's flow runs.

There is one for the process, started for its first flow run with jobs. It costs about a millisecond to start, and 5 MiB
of memory.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping

from executor_adapter.pools.transport.importable import current_path
from executor_adapter.worker import sentinel, wire
from executor_adapter.worker.interpreter import interpreter_command
from executor_adapter.worker.presence import own_presence

logger = logging.getLogger("executor_adapter")

REPORTER = "executor_adapter.prefect.crashes.reporter"
"""The module's name, not an import, because only `executor_adapter.prefect` may import Prefect."""

MAX_REPLACEMENTS = 3
"""Sentinels that are started for others that have died. One that cannot live here is not started for ever."""

_SEND_TIMEOUT = 5.0
"""Seconds for which a flow waits at most for a sentinel that reads nothing, because a signal stopped it."""

_EXIT_TIMEOUT = 1.0
"""Seconds for which this process waits for the sentinel's exit, which takes a millisecond."""


class SentinelClient:
    """The sentinel of this process. Any thread may use it."""

    def __init__(self) -> None:
        self._forget()
        os.register_at_fork(after_in_child=self._forget_in_child)
        # Handlers run in reverse order: those that record what is left when the process exits come first.
        atexit.register(self.stop)

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        """The sentinel reads its other end. A pipe would raise SIGPIPE once the sentinel has died."""
        self._announced: dict[str, dict[str, object]] = {}
        """The message about each flow run that the sentinel knows, the newest ones, by the flow run's id."""
        self._replacements = 0

    def _forget_in_child(self) -> None:
        """Leave the sentinel to the parent process: a forked process is another host, with one of its own."""
        if self._process is not None and self._socket is not None:
            self._socket.close()
            self._process.returncode = 0  # It is not a child of this process, which must not wait for it.
        self._forget()

    @property
    def pid(self) -> int | None:
        """The sentinel's process id; None if it has not been needed."""
        return None if self._process is None else self._process.pid

    def announce(self, flow_run_id: str, run_count: int, environment: Mapping[str, str]) -> None:
        """Notify the sentinel that this process runs a flow run. It is started for the first one.

        `run_count` is the number of the flow run's current run. `environment` holds the variables that a new process
        needs to reach the flow run's server, besides those of this process.
        """
        if self._announced.get(flow_run_id, {}).get("run_count") == run_count:
            return
        message = {"flow_run": flow_run_id, "run_count": run_count, "environment": dict(environment)}
        with self._lock:
            self._announced.pop(flow_run_id, None)
            self._announced[flow_run_id] = message
            if len(self._announced) > sentinel.MAX_FLOW_RUNS:
                del self._announced[next(iter(self._announced))]
            if self._process is None:
                self._start()
            else:
                self._send(message)

    def ensure_alive(self) -> None:
        """Replace a sentinel that has died, for example because it was killed. Call it now and then: it is cheap."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self._replace(f"it has ended with exit status {self._process.returncode}")

    def _start(self) -> None:
        """Start a sentinel, and send it all messages."""
        try:
            self._process, self._socket = _start_process()
            self._send(*self._announced.values())
        except OSError as error:
            self._warn(f"cannot be started ({error})")

    def _send(self, *messages: dict[str, object]) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendall(b"".join(json.dumps(each).encode() + b"\n" for each in messages), wire.NO_SIGNAL)
        except OSError as error:
            self._replace(error)

    def _replace(self, reason: object) -> None:
        """Start another sentinel, which gets all messages again."""
        self._close()
        if self._replacements == MAX_REPLACEMENTS:
            self._warn(f"is lost ({reason}), and so were {MAX_REPLACEMENTS} before it")
            return
        self._replacements += 1
        logger.warning("the sentinel of this process is lost (%s): starting another one", reason)
        self._start()

    @staticmethod
    def _warn(what: str) -> None:
        logger.warning(
            "the sentinel of this process %s: if this process is killed, its task runs stay unfinished until "
            "`executor-adapter prefect sweep`",
            what,
        )

    def _close(self) -> None:
        if self._process is not None and self._socket is not None:
            self._process.kill()  # If it lives, it would take the end of its input for the death of this process.
            # One that the kernel holds up, as in a file system that is away, does nothing more either.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_EXIT_TIMEOUT)
            self._socket.close()
        self._process = self._socket = None

    def stop(self) -> None:
        """Let the sentinel exit, because this process exits in an orderly way."""
        with self._lock:
            if self._process is None or self._socket is None:
                return
            self._announced.clear()
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._socket.send(json.dumps({"exits": True}).encode() + b"\n", wire.NO_SIGNAL)
                self._process.wait(_EXIT_TIMEOUT)
            self._close()


def _start_process() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start the process, and return it with the socket whose other end is its standard input.

    Raises:
        OSError: the system refuses a process or a socket.
    """
    path = [str(entry) for entry in current_path()]
    setup = {
        "host": os.getpid(),
        "presence": own_presence().name,
        "path": path,
        "reporter": interpreter_command(sentinel.REPORTER_BOOTSTRAP, REPORTER, json.dumps(path)),
    }
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                # It needs nothing that is installed, and no module of the working directory.
                [sys.executable, "-I", "-S", "-c", sentinel.BOOTSTRAP, json.dumps(setup)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    ours.settimeout(_SEND_TIMEOUT)
    return process, ours


sentinel_client = SentinelClient()
"""The sentinel of this process."""
