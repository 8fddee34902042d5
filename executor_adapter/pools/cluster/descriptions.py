"""What `doctor` asks nodes: their versions, their clocks, and whether they reach this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from executor_adapter.pools.cluster.hello import hello, refusal
from executor_adapter.pools.cluster.hosts import SshHost, agent_command

PACKAGES = ("prefect-executor-adapter", "cloudpickle", "prefect", "numpy", "pandas", "pyarrow")
"""Packages whose versions are compared: values and functions of these are often sent between machines."""
MAX_CLOCK_SKEW = 2.0
"""Seconds by which the clock of a node may differ: no job minds, but its log lines are out of order."""
ANSWER_TIMEOUT = 20.0
"""Seconds that a host or a scheduler may take to answer."""


def describe(*more: str) -> dict[str, Any]:
    """Return what this node is, in a form that JSON has. `more`: packages that are compared too."""
    return {**hello(socket.gethostname()), "packages": {name: _version(name) for name in (*PACKAGES, *more)}}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def describe_ssh_host(host: SshHost, ssh_command: Sequence[str]) -> dict[str, Any]:
    """Ask a host what it is, by ssh.

    Raises:
        OSError: it cannot be reached, or cannot run this package; the message says what ssh said.
    """
    command = agent_command(host, ssh_command, "--describe")
    asked_at = time.time()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise OSError(f"no answer within {ANSWER_TIMEOUT:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise OSError(f"ssh ended with code {done.returncode}: {said[-1] if said else 'it said nothing'}")
    # The host's shell may have printed something before.
    return {**json.loads(done.stdout.splitlines()[-1]), "asked_at": asked_at}


def differences(node: str, theirs: dict[str, Any]) -> list[str]:
    """Return in words in what a node differs from this machine so that jobs might fail.

    `theirs`: what it is, with the time here when it was asked.
    """
    found = [why] if (why := refusal(node, theirs)) else []
    for name, there in theirs["packages"].items():
        if there != (ours := _version(name)):
            found.append(f"{name} is {there or 'missing'} there, {ours or 'missing'} here")
    # It read its clock at some time between the question and now.
    now = time.time()
    skew = theirs["time"] - min(max(theirs["time"], theirs["asked_at"]), now)
    if abs(skew) > MAX_CLOCK_SKEW:
        found.append(f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}")
    return found


def print_description() -> int:
    """Print what this node is; return the exit code."""
    print(f"\n{json.dumps(describe())}")
    return 0
