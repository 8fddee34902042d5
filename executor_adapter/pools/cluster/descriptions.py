"""What `doctor` asks nodes: their versions, their clocks, and whether they reach this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
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


def describe() -> dict[str, Any]:
    """Return what this node is, in a form that JSON has."""
    return {**hello(socket.gethostname()), "packages": {name: _version(name) for name in PACKAGES}}


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
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise OSError(f"no answer within {ANSWER_TIMEOUT:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise OSError(f"ssh ended with code {done.returncode}: {said[-1] if said else 'it said nothing'}")
    described: dict[str, Any] = json.loads(done.stdout)
    return described


def describe_dask_workers(address: str, listen_host: str | None) -> dict[str, dict[str, Any]]:
    """Ask all workers of a Dask cluster what they are; "unreached" says why they do not reach this machine, or "".

    Raises:
        OSError: the scheduler cannot be reached, or the workers lack this package.
    """
    import distributed  # Only here: programs that do not use it need not have it.

    from executor_adapter.pools.cluster.engines.leases import host_towards

    engine: Any = distributed
    try:
        with engine.Client(address, set_as_default=False, timeout=ANSWER_TIMEOUT) as client:
            host = listen_host or host_towards(address)
            with socket.create_server((host, 0)) as listening:
                port = listening.getsockname()[1]
                return dict(client.run(_describe_worker, host, port))
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


def _describe_worker(host: str, port: int) -> dict[str, Any]:
    unreached = ""
    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except OSError as error:
        unreached = f"it cannot reach this machine at {host}: {error}"
    return {**describe(), "unreached": unreached}


def differences(node: str, theirs: dict[str, Any]) -> list[str]:
    """Return in words in what a node differs from this machine so that jobs might fail."""
    found = [why] if (why := refusal(node, theirs)) else []
    ours = describe()["packages"]
    for name, there in theirs["packages"].items():
        if there != ours[name] and (there is not None or ours[name] is not None):
            found.append(f"{name} is {there or 'missing'} there, {ours[name] or 'missing'} here")
    skew = theirs["time"] - time.time()
    if abs(skew) > MAX_CLOCK_SKEW:
        found.append(f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}")
    return found


def print_description() -> int:
    """Print what this node is; return the exit code."""
    json.dump(describe(), sys.stdout)
    return 0
