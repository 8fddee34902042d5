"""Ends a process when another one has ended, however that was: by its own exit, a signal or SIGKILL. Linux only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

from executor_adapter.worker.interpreter import interpreter_command

EXIT_TIMEOUT = 5.0
"""Seconds for the process to end by SIGTERM, before it is killed."""

_PROGRAM = "import sys\nfrom executor_adapter.worker import bond\nbond.watch(int(sys.argv[1]), int(sys.argv[2]))"


def end_with_this_process(pid: int) -> None:
    """Start a small process that ends the process `pid`, a child of this one, when this process has ended.

    It ends by itself when that process does. Without Linux's pidfds it is not started.
    """
    if not hasattr(os, "pidfd_open"):
        return
    watcher = subprocess.Popen(
        interpreter_command(_PROGRAM, str(os.getpid()), str(pid)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # A Ctrl-C at the terminal ends this process, and not the one that sees to the rest.
    )
    watcher.returncode = 0  # It outlives this process, which need not wait for it.


def watch(parent: int, pid: int) -> None:
    """Wait until the process `parent` or its child `pid` has ended, and then end the child."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    with contextlib.suppress(ProcessLookupError):  # The child has ended.
        child_fd = os.pidfd_open(pid)
        with contextlib.suppress(ProcessLookupError):  # The parent has ended.
            select.select([os.pidfd_open(parent), child_fd], [], [])
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(child_fd, number)
            if select.select([child_fd], [], [], EXIT_TIMEOUT)[0]:
                break
    sys.exit()
