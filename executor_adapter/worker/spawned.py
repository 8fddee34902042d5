"""A spawned worker: an interpreter of its own, which serves its host as a forked one does (see `worker`) but for what
only Linux has.

**No tickets.** It is sent one call at a time, and says BEGUN before it begins it: the call of a worker that died
without that word goes back without an attempt.

**No guardian, and no kernel that kills it with its parent.** A thread waits for the end of a pipe whose other end the
host holds, and then kills the worker's process group. It is a Python thread: as long as a function holds the GIL it
does not run, and neither does it see what left the group.

**SIGTERM** while there is nothing to run: it leaves at once.

It starts with nothing loaded, so it needs the standard library alone.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import select
import signal
import socket
import threading
import time
import traceback
from typing import Any

from executor_adapter.worker import process, wire
from executor_adapter.worker.call import TERMINATED
from executor_adapter.worker.stdio import Stdio

BOOTSTRAP = (
    "import pickle, sys\n"
    "setup = pickle.load(sys.stdin.buffer)\n"
    "sys.path[:] = setup['path']\n"
    "from executor_adapter.worker.spawned import main\n"
    "main([int(fd) for fd in sys.argv[1:]], setup)\n"
)
"""What the worker's interpreter runs: it must have the host's sys.path before it can find this package. The program's
`__main__` is not imported."""

_LOOK_EVERY = 2.0
"""Seconds between two looks at who the parent is: another process may hold the pipe's other end too."""
_SETTLE = 0.02
"""A process that dies closes its descriptors before it ceases to be a parent."""


def main(fds: list[int], setup: dict[str, Any]) -> None:
    """Serve the host until it closes the socket, then exit.

    `fds`: the worker's ends of socket, lifeline, stdout and stderr. `setup`: that of a guardian's worker.
    """
    code = process.FAILED_TO_START
    try:
        for fd in (*fds, *setup["presence"]):
            os.set_inheritable(fd, False)
        code = process.main(fds, setup, functools.partial(_make_worker, setup))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # threads that a function left are no reason to stay


def _make_worker(setup: dict[str, Any], sock: socket.socket, lifeline: int, stdio: Stdio, log_level: int) -> Spawned:
    made = Spawned(sock, lifeline, stdio, log_level)
    threading.Thread(target=_outlive_no_host, args=(lifeline, setup["host"]), name="host-watch", daemon=True).start()
    _preload(setup["preload"])
    return made


def _outlive_no_host(lifeline: int, host: int) -> None:
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    while os.getppid() == host:
        if poll.poll(_LOOK_EVERY * 1000):
            time.sleep(_SETTLE)
    os.killpg(0, signal.SIGKILL)


def _preload(names: tuple[str, ...]) -> None:
    """Import what functions will need, so that it does not count towards their limits; what fails is left to fail
    there."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            logging.getLogger(__name__).warning("cannot preload %s: %s", name, traceback.format_exc(limit=-1))


class Spawned(process.Worker):
    """One whose descriptor for tickets is its lifeline: nothing comes out of it but its end."""

    def _take_ticket(self) -> bool:
        self._channel.send(wire.frame(wire.BEGUN))
        return True

    def _on_terminate(self, *_: Any) -> None:
        if self._attempt is None:
            os._exit(TERMINATED)
        super()._on_terminate()
