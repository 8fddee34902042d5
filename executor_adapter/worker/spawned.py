"""A spawned worker: an interpreter of its own that serves its host as a forked worker does, without Linux's features.

It differs from a forked worker (`process`) in that there is no guardian, and no kernel that kills it with its parent.
So its tickets are in a pipe, whose other end the host holds: a thread waits for the end of that pipe, and then kills
the worker's process group. It is a Python thread: it does not run while a function holds the GIL, and it does not find
what left the group.

It starts with nothing loaded, so it needs the standard library alone.
"""

from __future__ import annotations

import functools
import logging
import os
import select
import signal
import threading
import time
import traceback
from typing import Any

from executor_adapter.worker import process

_PARENT_CHECK_INTERVAL = 2.0
"""Seconds between two checks of the parent's id: a forked process may hold the pipe's other end open too."""
_EXIT_DELAY = 0.02
"""Seconds to wait after the pipe's end: a dying process closes its descriptors before its children get a new parent."""


def main(fds: list[int], setup: dict[str, Any]) -> None:
    """Serve the host until it closes the socket, then exit.

    `fds`: the worker's ends of socket, tickets, stdout and stderr. `setup`: the same as for a forked worker.
    """
    code = process.EXIT_SETUP_FAILED
    try:
        for fd in (*fds, *setup["presence"]):
            os.set_inheritable(fd, False)
        code = process.main(fds, setup, functools.partial(_begin, setup))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # Not sys.exit, which would wait for threads that a function left running.


def _begin(setup: dict[str, Any], tickets: int) -> None:
    threading.Thread(target=_exit_with_host, args=(tickets, setup["host"]), name="host-watch", daemon=True).start()
    process.preload(setup["preload"], logging.getLogger(__name__).warning)


def _exit_with_host(tickets: int, host: int) -> None:
    """Wait until the host has died, then kill this worker's process group."""
    # A signal that the function blocks must not be delivered to this thread instead.
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    poll = select.poll()
    poll.register(tickets, 0)  # Its end is reported in any case, and tickets are none of this thread's business.
    while os.getppid() == host:
        if poll.poll(_PARENT_CHECK_INTERVAL * 1000):
            time.sleep(_EXIT_DELAY)
    os.killpg(0, signal.SIGKILL)
