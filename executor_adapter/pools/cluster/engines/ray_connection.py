"""The connection of this program to Ray. A process has at most one, so all that use it here share it.

One that the program has made itself (`ray.init`) is used as it is, and is never ended here. One that is made here ends
when the last user has left.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

from executor_adapter.job import CPU, GPU, MEMORY
from executor_adapter.pools.cluster.handshake import host_towards

logger = logging.getLogger("executor_adapter.cluster")

SLOT = "executor_adapter_slot"
"""The resource of a local cluster of which each lease takes one: there are enough for every executor that shares it."""

REACH_TIMEOUT = 10.0
"""Seconds that the host of a cluster may take to accept the first connection."""
PROBE_TIMEOUT = 1.0
PROBE_INTERVAL = 1.0
_LIMIT_OF_RAY = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Names the seconds after which Ray ends a program whose cluster has a control store that does not answer."""
LOST_SHARE = 0.75
"""The part of that limit after which the program leaves the cluster."""
LOCAL_LOST_SECONDS = 3.0
"""Seconds after which it leaves one that is started here: nobody starts the control store of that again."""

_MANY = 1_000_000

_lock = threading.Lock()
_ending = threading.Lock()
"""Held while a connection that was made here ends, and while another thread makes a call."""
_users: set[RayUser] = set()
_made: _Connection | None = None
"""The connection that was made here."""


class RayUser:
    """One user of the connection. Its methods may block."""

    def __init__(self) -> None:
        self.is_local = False
        """Whether the cluster was started here, and so has SLOTs."""
        self._connection: tuple[str, str] | None = None

    def join(self, address: str | None, capacity: Mapping[str, float]) -> str:
        """Take the connection that there is, or make one. Return the address of the cluster's control store.

        `address`: as in the settings; None takes any. `capacity`: what a local cluster has that is started here; how
        much memory it has is up to Ray.

        Raises:
            ConnectionError: the program is connected to another cluster, or this one cannot be reached.
        """
        global _made
        import ray  # Only here: programs that do not use it need not have it.

        with _lock:
            if not ray.is_initialized():
                if _made is not None:  # The program has ended it.
                    _made.close()
                    _made = None
                made = _Connection(ray, address or os.environ.get("RAY_ADDRESS") or "local", capacity)
                made.open()
                _made = made
            connection = _current(ray)
            ours = _made if _made is not None and _made.name_in_ray == connection else None
            asked_for = None if ours is not None and ours.address == address else address
            if asked_for is not None and not is_same(asked_for, connection[0]):
                raise ConnectionError(
                    f"cluster.ray.address is {address}, and this program is connected to the Ray cluster at "
                    f"{connection[0]}: a program has one connection, so remove one of the two"
                )
            _users.add(self)
            self._connection = connection
            self.is_local = ours is not None and ours.is_local
            return connection[0]

    def is_connected(self) -> bool:
        """Return whether the connection that this user has joined is still there."""
        import ray

        return self._connection is not None and ray.is_initialized() and _current(ray) == self._connection

    def call(self, send: Callable[..., Any], *args: Any) -> Any:
        """Return what `send(*args)` does. Ray ends a program that calls an actor once the connection has ended.

        Raises:
            ConnectionError: the connection has ended; nothing was sent.
        """
        with _ending:
            if not self.is_connected():
                raise ConnectionError(self.why_ended())
            return send(*args)

    def answer(self, send: Callable[..., Any], *args: Any) -> Any:
        """Return the answer to `send(*args)`, however long it takes.

        The thread waits outside Ray, which ends a program in which one waits inside when the connection ends.

        Raises:
            ConnectionError: the connection has ended.
        """
        answer = self.call(send, *args).future()
        while not wait([answer], PROBE_INTERVAL).done:
            if not self.is_connected():
                raise ConnectionError(self.why_ended())
        return answer.result()

    def answers(self) -> bool:
        """Return whether the control store can be reached: otherwise a call to it blocks, and may end the program."""
        return self.is_connected() and not self.why_silent()

    def why_silent(self) -> str:
        """Return why the control store cannot be reached; "" if it can."""
        return "" if self._connection is None else why_closed(self._connection[0], PROBE_TIMEOUT)

    def why_ended(self) -> str:
        """Return why the connection is there no more."""
        lost = _made.lost if _made is not None and _made.name_in_ray == self._connection else ""
        return lost or "the program has ended its connection to Ray"

    def leave(self) -> None:
        """End the connection if it was made here and nobody else uses it."""
        global _made
        with _lock:
            _users.discard(self)
            if _made is not None and not _users:
                _made.close()
                _made = None


class _Connection(threading.Thread):
    """A connection that is made here, and its thread.

    The thread lives as long as the connection: where it starts a local cluster, the kernel kills the processes of that
    when the thread that has started them ends (PR_SET_PDEATHSIG).
    """

    def __init__(self, ray: Any, address: str, capacity: Mapping[str, float]) -> None:
        super().__init__(name="executor-ray-connection", daemon=True)
        self.address = address
        self.is_local = address == "local"
        """Whether the cluster is started here."""
        self.name_in_ray = ("", "")
        """What `_current` calls it."""
        self.lost = ""
        """Why it was ended by itself."""
        self._ray = ray
        self._options: dict[str, Any] = {"address": address, "log_to_driver": False, "configure_logging": False}
        if self.is_local:
            custom = {name: amount for name, amount in capacity.items() if name not in (CPU, GPU, MEMORY)}
            known = {"num_cpus": math.ceil(capacity.get(CPU, 0)), "num_gpus": capacity.get(GPU)}
            self._options |= {**known, "resources": {SLOT: _MANY, **custom}, "include_dashboard": False}
        self._opened = Future[None]()
        self._is_to_close = threading.Event()

    def open(self) -> None:
        """Connect.

        Raises:
            ConnectionError: nothing listens at the address. Ray itself tries for minutes, and may then end the program.
            Exception: the cluster cannot be reached or started.
        """
        if self.address.rpartition(":")[2].isdigit() and (why := why_closed(self.address, REACH_TIMEOUT)):
            raise ConnectionError(f"nothing answers at {self.address}: {why}")
        self.start()
        self._opened.result()

    def close(self) -> None:
        """End the connection, unless the program has done so."""
        self._is_to_close.set()
        self.join()

    def run(self) -> None:
        try:
            self._connect()
        except BaseException as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        self._wait_for_end()
        with _ending:
            if self._ray.is_initialized() and _current(self._ray) == self.name_in_ray:
                self._ray.shutdown()

    def _wait_for_end(self) -> None:
        """Wait until the connection is to be closed, or its control store is gone."""
        answered_at = time.monotonic()
        limit = LOCAL_LOST_SECONDS if self.is_local else LOST_SHARE * float(os.environ.get(_LIMIT_OF_RAY) or 60.0)
        while not self._is_to_close.wait(PROBE_INTERVAL):
            now = time.monotonic()
            if not why_closed(self.name_in_ray[0], PROBE_TIMEOUT):
                answered_at = now
            elif now - answered_at > limit:
                self.lost = f"its control store did not answer for {now - answered_at:.0f} s"
                logger.error("this program leaves the Ray cluster at %s: %s", self.name_in_ray[0], self.lost)
                return

    def _connect(self) -> None:
        log = logging.getLogger("ray")
        level = log.level
        log.setLevel(logging.ERROR)  # It warns that it sets no signal handler in a thread, and none is wanted.
        try:
            self._ray.init(**self._options)
        finally:
            log.setLevel(level)
        self.name_in_ray = _current(self._ray)


def _current(ray: Any) -> tuple[str, str]:
    """Name the connection that there is: the cluster's address, and the number that the cluster has given to it."""
    context = ray.get_runtime_context()
    return str(context.gcs_address), str(context.get_job_id())


def why_closed(address: str, timeout: float) -> str:
    """Return why nothing accepts a connection at host:port; "" if something does."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def node_name(node: dict[str, Any]) -> str:
    """Return what the agent on a node of `ray.nodes()` calls itself."""
    return f"{node['NodeManagerAddress']}/{node['NodeID'][:8]}"


def is_same(address: str, connected: str) -> bool:
    """Return whether an address of the settings is that of the cluster that the program is connected to."""
    return address == "auto" or not _places(address).isdisjoint(_places(connected))


def _places(address: str) -> set[tuple[str, str]]:
    """Return the hosts that an address stands for, each with its port; "here" is any address of this machine."""
    host, _, port = address.rpartition(":")
    hosts = {host}
    with contextlib.suppress(OSError):
        hosts = {str(found[4][0]) for found in socket.getaddrinfo(host.strip("[]"), None)}
    return {("here" if _is_here(each) else each, port) for each in hosts}


def _is_here(address: str) -> bool:
    """Return whether an address is one of this machine's: then it is reached from there."""
    with contextlib.suppress(OSError):
        return host_towards(f"[{address}]" if ":" in address else address) == address
    return False
