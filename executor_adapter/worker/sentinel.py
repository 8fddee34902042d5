"""The sentinel: a small process that outlives its host by a moment, and then reports the host's death.

A host sends it the ids of its flow runs. When the host has died, the sentinel starts the reporter: a fresh interpreter
that waits until the host's guardians have killed its workers, and then ends what the dead host has left unfinished on
the Prefect server. A host that exits in an orderly way says so, and the sentinel exits with it and starts nothing.

It needs no guardian, since a flow whose jobs run in threads has none, and since a flow run lasts longer than an
executor. It has its own session, so that signals to the host's process group do not reach it, and holds none of the
host's descriptors. It waits without a timer, and needs the standard library alone.

    host -> sentinel    one JSON object a line on stdin: {"flow_run": id, "run_count": number, "environment": {...}},
                        or {"exits": true}
    sentinel -> reporter    one JSON object on stdin: {"flow_runs": {id: run_count}, "died_at": time, "presence": name}

`environment` holds the variables that the reporter needs besides those that the sentinel has inherited. It passes
through memory only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import time
from typing import Any

MAX_FLOW_RUNS = 1_000
"""Flow runs that are remembered, the newest ones: a program may run any number of flows, one after another."""

_REPORTER_TIMEOUT = 600.0
"""Seconds after which a reporter is killed. It limits its own time, unless something stops it, and notes then what it
could not report: its imports alone take most of a minute where much else runs."""


def main(setup: dict[str, Any]) -> None:
    """Wait until the host has exited or died, and report its death.

    `setup` holds the pid of the host, the name of its presence, its sys.path, and the command that runs the reporter.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    flow_runs = _flow_runs_at_death(0, _open_pidfd(setup["host"]))
    if flow_runs:
        death = {"died_at": time.time(), "presence": setup["presence"]}
        for environment, run_counts in _by_environment(flow_runs):
            _report(setup, environment, {"flow_runs": run_counts, **death})
    os._exit(0)  # There is nothing to clean up, and a host that exits waits for this.


def _flow_runs_at_death(fd: int, host_pidfd: int | None) -> dict[str, dict[str, Any]]:
    """Return the newest message of each of the host's flow runs after its death; none if it exits in an orderly way.

    The end of the stream alone is not enough, since a process that the host forked may hold the other end open. It
    is the only sign where the system has no pidfds.
    """
    os.set_blocking(fd, False)
    poll, flow_runs, rest, host_lives = select.poll(), dict[str, dict[str, Any]](), b"", True
    for each in (fd, host_pidfd):
        if each is not None:
            poll.register(each, select.POLLIN)
    while host_lives:
        host_lives = host_pidfd not in {ready for ready, _ in poll.poll()}
        # The stream is read after the death was seen, so that no message is missed.
        with contextlib.suppress(BlockingIOError):
            while part := os.read(fd, 65536):
                *lines, rest = (rest + part).split(b"\n")
                for message in map(json.loads, lines):
                    if "exits" in message:
                        return {}
                    flow_runs.pop(message["flow_run"], None)
                    flow_runs[message["flow_run"]] = message
                    if len(flow_runs) > MAX_FLOW_RUNS:
                        del flow_runs[next(iter(flow_runs))]
            host_lives = False
    return flow_runs


def _open_pidfd(host: int) -> int | None:
    """Return a pidfd of the host; None if it has died already, or the system has none. Then the stream ends."""
    try:
        pidfd = os.pidfd_open(host)
    except (AttributeError, OSError):
        return None
    if os.getppid() == host:
        return pidfd
    os.close(pidfd)  # The host has died, and another process may have its id.
    return None


def _by_environment(flow_runs: dict[str, dict[str, Any]]) -> list[tuple[dict[str, str], dict[str, int]]]:
    """Return the run counts of the flow runs by id, apart for each environment: each has a server of its own."""
    groups: dict[str, tuple[dict[str, str], dict[str, int]]] = {}
    for flow_run_id, message in flow_runs.items():
        environment = message["environment"]
        group = groups.setdefault(json.dumps(environment, sort_keys=True), (environment, {}))
        group[1][flow_run_id] = message["run_count"]
    return list(groups.values())


def _report(setup: dict[str, Any], environment: dict[str, str], report: dict[str, Any]) -> None:
    import subprocess  # It takes longer to import than all else here, and most hosts exit in an orderly way.

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            setup["reporter"],
            input=json.dumps(report).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | environment,
            timeout=_REPORTER_TIMEOUT,
        )


BOOTSTRAP = (
    "import json, sys\n"
    "setup = json.loads(sys.argv[1])\n"
    "sys.path[:] = setup['path']\n"
    "from executor_adapter.worker.sentinel import main\n"
    "main(setup)\n"
)
"""The program of the sentinel's interpreter: it needs the host's sys.path before it can import this package."""

REPORTER_BOOTSTRAP = (
    "import importlib, json, sys\nsys.path[:] = json.loads(sys.argv[2])\nimportlib.import_module(sys.argv[1]).main()\n"
)
"""The program of the reporter's interpreter, for the same reason."""
