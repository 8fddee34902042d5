"""What runs in a process of Ray's on a node: the actor that starts the agent there and tells it of leases.

It also holds data for the workers of the agent. A result that is kept waits here until the program hears of it, and
takes it as the return value of a method: so its ObjectRef belongs to the program, and the data is in the node's store.
"""

from __future__ import annotations

import os
import socket
import threading
from queue import SimpleQueue
from typing import Any

from executor_adapter.exceptions.display import text_of
from executor_adapter.pools.cluster.engines.agent_process import AgentProcess
from executor_adapter.pools.cluster.handshake import RELAY_BYTES
from executor_adapter.pools.cluster.link import Certificates
from executor_adapter.pools.cluster.node_data import Kept
from executor_adapter.pools.gpus import gpu_environment

LEND_TIMEOUT = 60.0
"""Seconds that a reference may arrive after the call which needs it."""


def gpus_of_bundle() -> dict[str, str]:
    """Return the variables that show the GPUs of a placement group, in whose bundle this runs."""
    import ray

    return gpu_environment(str(gpu) for gpu in ray.get_gpu_ids())


def certificates_of_ray() -> Certificates | None:
    """Return the certificates that Ray uses in this process; None where it uses no TLS."""
    if os.environ.get("RAY_USE_TLS", "").lower() not in ("1", "true"):
        return None
    names = {"ca_file": "RAY_TLS_CA_CERT", "cert": "RAY_TLS_SERVER_CERT", "key": "RAY_TLS_SERVER_KEY"}
    return {name: os.environ.get(variable) for name, variable in names.items()}


class NodeActor:
    """Starts the agent of one head on one node, and is its `DataStore`. The agent ends with the actor's process."""

    def __init__(self, head: dict[str, Any], node: str) -> None:
        self._head, self._node = head["token"], node
        self._kept: dict[str, Any] = {}
        self._lent: dict[int, dict[str, Any]] = {}
        """The references of each attempt by their names."""
        self._changed = threading.Condition()
        self._words = words = SimpleQueue[str | None]()
        head = {**head, "certificates": certificates_of_ray()}
        self._agent = AgentProcess(head, node, self, lambda _, word: words.put(word))

    def hold(self, lease: int, environment: dict[str, str]) -> None:
        """Tell the agent of a lease, and of variables of the environment of the attempts that run on it."""
        self._agent.hold(lease, environment)

    def next_word(self) -> str | None:
        """Wait until there is news of the agent: None where it cannot connect to its head, or why it has ended."""
        return self._words.get()

    def read_link(self) -> bytes:
        """Return what an agent has sent that cannot connect; b"" at its end."""
        if not (part := self._agent.link.recv(RELAY_BYTES)):
            self._agent.link.close()
        return part

    def write_link(self, part: bytes) -> None:
        """Send it something; b"" is the end."""
        self._agent.link.sendall(part) if part else self._agent.link.shutdown(socket.SHUT_WR)

    def lend(self, attempt: int, references: list[Any]) -> None:
        """Keep the references of an attempt; without any, it is over.

        Each attempt has one call of either kind, and each call a thread of its own: either may be the first.
        """
        with self._changed:
            if self._lent.pop(attempt, None) is None:
                self._lent[attempt] = {reference.hex(): reference for reference in references}
            self._changed.notify_all()

    def fetch(self, name: str) -> Any:
        """Return what a reference refers to.

        Raises:
            LookupError: it was not lent, or its task has failed.
        """
        import ray

        with self._changed:
            found = self._changed.wait_for(lambda: [of[name] for of in self._lent.values() if name in of], LEND_TIMEOUT)
        if not found:
            raise LookupError("the program has not lent it to this node")
        try:
            return ray.get(found[0])
        except ray.exceptions.RayTaskError as error:
            cause: Any = error
            raise LookupError(f"its task has failed: {type(cause.cause).__name__}: {text_of(cause.cause)}") from None

    def keep(self, name: str, value: Any) -> Kept:
        """Take a result."""
        self._kept[name] = value
        return Kept(self._head, name, self._node)

    def take(self, name: str) -> Any:
        """Return a result that was kept."""
        return self._kept.pop(name)

    def end(self) -> None:
        """Kill the agent, which may be stopped. Ray ends this process when the program awaits nothing more of it."""
        self._agent.kill()
