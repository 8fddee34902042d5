"""What `doctor` asks the nodes of an engine's cluster: what they are, and whether they reach this machine."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple

from executor_adapter.exceptions.display import text_of
from executor_adapter.pools.cluster import descriptions
from executor_adapter.pools.cluster.engines.ray_connection import RayUser, node_name
from executor_adapter.pools.cluster.handshake import host_towards

REACH_TIMEOUT = 3.0
"""Seconds that a node may take to reach this machine."""

EngineName = Literal["dask", "ray"]
_Describe = Callable[[], dict[str, Any]]
_AskAll = Callable[[_Describe], dict[str, Any]]
"""Calls a function on every node; returns by node what it has returned, or the exception that it has raised."""

_PACKAGES = {"dask": "distributed", "ray": "ray"}


class NodeAnswer(NamedTuple):
    """What a node of an engine has said."""

    described: dict[str, Any] | None
    """None where it could not answer."""
    error: str = ""
    """Why it could not answer."""
    unreached: str = ""
    """Why it does not reach this machine."""


def ask_nodes(engine: EngineName, address: str, listen_host: str | None) -> dict[str, NodeAnswer]:
    """Ask all nodes of an engine's cluster what they are.

    Raises:
        ImportError: the engine is not installed here.
        OSError: the cluster cannot be reached.
    """
    connect: dict[EngineName, Callable[[str], AbstractContextManager[tuple[str, _AskAll]]]]
    connect = {"dask": _connect_to_dask, "ray": _connect_to_ray}
    try:
        with connect[engine](address) as (scheduler, ask_all):
            host = listen_host or host_towards(scheduler)
            with socket.create_server((host, 0)) as listening:
                port = listening.getsockname()[1]
                asked_at = time.time()
                answers = ask_all(functools.partial(describe_node, host, port, _PACKAGES[engine]))
    except (ImportError, OSError):
        raise
    except Exception as error:
        raise OSError(_in_words(error)) from error
    return {node: _answer(said, asked_at) for node, said in answers.items()}


def describe_node(host: str, port: int, package: str) -> dict[str, Any]:
    """Return what this node is, and whether it reaches a port of the program's machine. `package`: its engine."""
    unreached = ""
    try:
        socket.create_connection((host, port), timeout=REACH_TIMEOUT).close()
    except OSError as error:
        unreached = f"it cannot reach this machine at {host}: {error}"
    return {**descriptions.describe(package), "unreached": unreached}


def _answer(said: Any, asked_at: float) -> NodeAnswer:
    if isinstance(said, BaseException):
        return NodeAnswer(None, error=_in_words(said))
    return NodeAnswer({**said, "asked_at": asked_at}, unreached=said["unreached"])


def _in_words(error: BaseException) -> str:
    lines = [line for line in text_of(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


@contextlib.contextmanager
def _connect_to_dask(address: str) -> Iterator[tuple[str, _AskAll]]:
    import distributed  # Only here: programs that do not use it need not have it.

    engine: Any = distributed
    with engine.Client(address, set_as_default=False, timeout=descriptions.ANSWER_TIMEOUT) as client:
        yield address, lambda describe: dict(client.run(describe, on_error="return"))


@contextlib.contextmanager
def _connect_to_ray(address: str) -> Iterator[tuple[str, _AskAll]]:
    import ray  # Only here, likewise.

    engine: Any = ray
    user = RayUser()
    try:
        scheduler = user.join(address, processors=0)
        yield scheduler, functools.partial(_ask_ray_nodes, engine)
    finally:
        user.leave()


def _ask_ray_nodes(ray: Any, describe: _Describe) -> dict[str, Any]:
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(num_cpus=0, max_retries=0)(lambda: describe())
    asked = {
        node_name(node): task.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"]
    }
    waiting = list(asked.values())
    done, _ = ray.wait(waiting, num_returns=len(waiting), timeout=descriptions.ANSWER_TIMEOUT)
    return {name: _result_of(ray, reference, reference in done) for name, reference in asked.items()}


def _result_of(ray: Any, reference: Any, is_done: bool) -> Any:
    if not is_done:
        return TimeoutError(f"no answer within {descriptions.ANSWER_TIMEOUT:.0f} s")
    try:
        return ray.get(reference)
    except Exception as error:
        return getattr(error, "cause", error)  # What the function has raised, without Ray's own words around it.
