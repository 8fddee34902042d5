"""What `doctor` asks nodes: what they are, what they have left, and whether they reach this machine."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from executor_adapter.config import ClusterSettings, SshHostSettings
from executor_adapter.job import size_text
from executor_adapter.pools.cluster import frames
from executor_adapter.pools.cluster.engines.leases import last_line
from executor_adapter.pools.cluster.engines.ray_connection import RayUser, node_name
from executor_adapter.pools.cluster.handshake import advertised, host_towards, listen, ports_of
from executor_adapter.pools.memory.available import AvailableMemory

PACKAGES = ("prefect-executor-adapter", "cloudpickle", "prefect", "numpy", "pandas", "pyarrow")
"""Packages whose versions are compared: values and functions of these are often sent between machines."""
MAX_CLOCK_SKEW = 2.0
"""Seconds by which the clock of a node may differ: no job minds, but its log lines are out of order."""
ANSWER_TIMEOUT = 20.0
"""Seconds that a host or a scheduler may take to answer."""
REACH_TIMEOUT = 3.0
"""Seconds that a node may take to reach this machine."""

EngineName = Literal["dask", "ray"]
_Describe = Callable[[], dict[str, Any]]
_AskAll = Callable[[_Describe], dict[str, Any]]
"""Calls a function on every node; returns by node what it has returned, or the exception that it has raised."""

_PACKAGES = {"dask": "distributed", "ray": "ray"}


def describe(*engine: str) -> dict[str, Any]:
    """Return what this node is, in a form that JSON has. `engine`: the package of the engine whose worker runs this."""
    memory = AvailableMemory().read()
    return {
        **frames.hello(socket.gethostname()),
        "packages": {name: _version(name) for name in (*PACKAGES, *engine)},
        "memory": 0 if memory is None else memory.left,
        "disk": shutil.disk_usage(os.curdir).free,
        "engine": "".join(engine),
    }


def _version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    return None


def compare_node(node: str, theirs: dict[str, Any]) -> tuple[str, list[str]]:
    """Return in words what a node is, and in what it differs from this machine so that jobs might fail.

    `theirs`: what it is, with the time here when it was asked.
    """
    found = [why for why in (frames.refusal(node, theirs), theirs.get("unreached")) if why]
    for name, there in theirs["packages"].items():
        if there != (ours := _version(name)):
            found.append(f"{name} is {there or 'missing'} there, {ours or 'missing'} here")
    # It read its clock at some time between the question and now.
    skew = theirs["time"] - min(max(theirs["time"], theirs["asked_at"]), time.time())
    if abs(skew) > MAX_CLOCK_SKEW:
        found.append(f"its clock is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}")
    return _in_words_of(theirs, skew), found


def _in_words_of(theirs: dict[str, Any], skew: float) -> str:
    shown = ["prefect-executor-adapter", "cloudpickle", *filter(None, [theirs["engine"]])]
    versions = [f"{name} {theirs['packages'][name] or 'missing'}" for name in shown]
    left = f"{size_text(theirs['memory'])} of memory and {size_text(theirs['disk'])} of disk free"
    worker = f", in process {theirs['pid']} of {theirs['node']}" if theirs["engine"] else ""
    return f"Python {theirs['python']}, {', '.join(versions)}{worker}; {left}; clock {skew:+.1f} s"


# --- hosts of ssh ---


def describe_ssh_host(host: SshHostSettings, ssh_command: Sequence[str]) -> dict[str, Any]:
    """Ask a host what it is, by ssh.

    Raises:
        OSError: it cannot be reached, or cannot run this package; the message says what ssh said.
    """
    command = frames.agent_command(host, ssh_command, "--describe")
    asked_at = time.time()
    try:
        done = subprocess.run(command, capture_output=True, errors="replace", timeout=ANSWER_TIMEOUT, input="")
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise OSError(f"ssh ended with code {done.returncode}: {said[-1] if said else 'it said nothing'}")
        # The host's shell may have printed something before.
        return {**json.loads(done.stdout.splitlines()[-1]), "asked_at": asked_at}
    except subprocess.TimeoutExpired:
        raise OSError(f"no answer within {ANSWER_TIMEOUT:.0f} s") from None
    except (ValueError, LookupError, TypeError):
        raise OSError("it does not answer as an agent of this version does") from None


# --- nodes of an engine ---


def ask_nodes(engine: EngineName, address: str, settings: ClusterSettings) -> dict[str, dict[str, Any] | str]:
    """Ask all nodes of an engine's cluster what they are. Of one that could not answer, return why.

    Raises:
        ImportError: the engine is not installed here.
        OSError: the cluster cannot be reached.
    """
    connect = {"dask": _connect_to_dask, "ray": _connect_to_ray}[engine]
    try:
        with contextlib.ExitStack() as stack:
            scheduler, ask_all = connect(address, stack)
            host = getattr(settings, engine).listen_host or host_towards(scheduler)
            port = (ports := ports_of(settings.listen_port))[-1]
            with contextlib.suppress(OSError):  # A program listens there now, and can be reached as well.
                port = stack.enter_context(listen(host, ports)).getsockname()[1]
            host, port = advertised(settings.advertise, host, port)
            asked_at = time.time()
            answers = ask_all(functools.partial(describe_node, host, port, _PACKAGES[engine]))
    except (ImportError, OSError):
        raise
    except Exception as error:
        raise OSError(last_line(error)) from error
    return {
        node: last_line(said) if isinstance(said, BaseException) else {**said, "asked_at": asked_at}
        for node, said in answers.items()
    }


def describe_node(host: str, port: int, package: str) -> dict[str, Any]:
    """Return what this node is, and whether it reaches a port of the program's machine. `package`: its engine."""
    unreached = ""
    try:
        socket.create_connection((host, port), timeout=REACH_TIMEOUT).close()
    except OSError as error:
        unreached = (
            f"it cannot reach this machine at {host}, port {port} ({error}), so that the link goes through the cluster "
            "and is slower: see listen_host, cluster.listen_port and cluster.advertise"
        )
    return {**describe(package), "unreached": unreached}


def _connect_to_dask(address: str, stack: contextlib.ExitStack) -> tuple[str, _AskAll]:
    import distributed  # Only here: programs that do not use it need not have it.

    engine: Any = distributed
    client = stack.enter_context(engine.Client(address, set_as_default=False, timeout=ANSWER_TIMEOUT))
    return address, lambda describe: dict(client.run(describe, on_error="return"))


def _connect_to_ray(address: str, stack: contextlib.ExitStack) -> tuple[str, _AskAll]:
    import ray  # Only here, likewise.

    engine: Any = ray
    user = RayUser()
    stack.callback(user.leave)
    return user.join(address, {}), functools.partial(_ask_ray_nodes, engine)


def _ask_ray_nodes(ray: Any, describe: _Describe) -> dict[str, Any]:
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(num_cpus=0, max_retries=0)(lambda: describe())
    asked = {
        node_name(node): task.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    waiting = list(asked.values())
    done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=ANSWER_TIMEOUT)
    return {name: _result_of(ray, reference, reference in done) for name, reference in asked.items()}


def _result_of(ray: Any, reference: Any, is_done: bool) -> Any:
    if not is_done:
        return TimeoutError(f"no answer within {ANSWER_TIMEOUT:.0f} s")
    try:
        return ray.get(reference)
    except Exception as error:
        return getattr(error, "cause", error)  # What the function has raised, without Ray's own words around it.
