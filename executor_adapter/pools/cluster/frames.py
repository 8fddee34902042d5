"""The frames between a head and an agent: those of `worker.wire`, and the further kinds below.

    head -> agent
        SETUP       body: the options of the process pool, pickled
        SLOTS       word: attempts that may run at once from now on, beside those that are ON_LEASE
        FUNCTION    as in `wire`, but for the body, pickled: the function, the numbers of the modules of the program
                    that it reaches, and the sources of those that were not sent yet, which get the next ones
        FILE        seq; body: the next chunk of the memory file of that call
        DROP_FILE   seq: the call is not sent after all
        CALL        seq, number of the attempt, word: the function's number, first: max_runtime or 0
                    body: CALL_PART, the sizes of the memory file's parts, and the body of a CALL of `wire`
        RECALL      seq: hand it back if it has not started
        GIVE_BACK   hand back all that waits for a worker
        STOP        seq, first: the grace; one that has not started is handed back
        INTERRUPT   seq
        RELEASED    word: the number of a lease that is given back
        BEAT        first: that of the newest BEAT of the agent; second: seconds that its attempts may run at most
        CLOSE       end; nothing is live any more. body: why, as text, if it is refused
    agent -> head
        HELLO       body: who it is, as JSON
        LEASED      word: the number of a lease that the engine has granted on this node; body: the environment of
                    its attempts, as JSON, if they have one
        GIVEN       body: the seq of each call that a worker is about to get
        STARTED     seq, word: pid, first: the age of the start in seconds
        RETURNED, RAISED
                    number: how it ended, as a place in `Ending`; seq, word: peak RSS in KiB, first and second: the ages
                    of start and end, -1 where it has not started; body: WORKER, and the body of the worker's frame, or
                    of one like it where no worker has written any
        MESSAGE     seq; body: topic and content, as the worker wrote them
        HANDED_BACK seq: it has not started
        FILE        seq; body: the next chunk of the memory file of that result
        BEAT        first: the time on the agent's clock
        LEAVING     the node is about to go: it takes nothing more, and hands back what has not started

Times are told as ages, since the clocks of machines differ.
"""

from __future__ import annotations

import os
import shlex
import struct
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from executor_adapter.job import HAS_GUARDIAN

if TYPE_CHECKING:
    from executor_adapter.config import SshHostSettings

START = b"\0executor-adapter agent\n"
"""What an agent that ssh starts writes first: the shell of its host may have printed something before."""

SETUP, SLOTS, FILE, DROP_FILE, RECALL, GIVE_BACK, STOP, INTERRUPT, RELEASED, BEAT, CLOSE = range(40, 51)
HELLO, LEASED, GIVEN, HANDED_BACK, LEAVING = range(60, 65)

SHORT = 64
"""Flag of a CALL: others may be queued behind it."""

ON_LEASE = 32
"""Flag of a CALL: it runs on a lease of its own, and so takes none of the SLOTS."""
OF_AGENT = SHORT | ON_LEASE
"""The flags of a CALL that are for the agent alone."""

CALL_PART = struct.Struct("<QI")
"""The memory limit or 0, and the size of what follows before the body proper: the sizes of the memory file's parts."""
WORD = struct.Struct("<I")
"""A seq in the body of a GIVEN."""
WORKER = struct.Struct("<Iii")
"""The worker, at the start of the body of a result: its pid or 0, its exit code or -1, the signal of its death or 0."""

BEATS = 6
"""Beats that an agent sends within `lost_after` seconds."""

_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
PROTOCOL = 3
"""Changes whenever a head and an agent of different versions would not understand each other."""


def agent_command(host: SshHostSettings, ssh_command: Sequence[str], *arguments: str) -> list[str]:
    """Return the command that starts the agent's program on a host of `pool="ssh"`."""
    start = " ".join(["exec", host.python, "-m", "executor_adapter.pools.cluster.agent_program", *arguments])
    if host.directory is not None:
        start = f"cd {shlex.quote(host.directory)} && {start}"
    return [*ssh_command, "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host.host, start]


def hello(node: str) -> dict[str, Any]:
    """Return what the agent of this process says of itself, in a form that JSON has."""
    return {
        "node": node,
        "pid": os.getpid(),
        "protocol": PROTOCOL,
        "python": _PYTHON,
        "missing": "" if HAS_GUARDIAN else "its system lacks pidfd, eventfd or memfd, which Linux 5.4 or newer has",
        "time": time.time(),
    }


def refusal(node: str, said: dict[str, Any]) -> str:
    """Return why an agent cannot be used; "" if it can."""
    if said["protocol"] != PROTOCOL:
        return f"node {node} has another version of prefect-executor-adapter: install the same one on both"
    if said["python"] != _PYTHON:
        return f"node {node} has Python {said['python']}, and this program {_PYTHON}: use the same on both"
    return f"node {node} cannot run jobs: {said['missing']}" if said["missing"] else ""
