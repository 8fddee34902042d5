"""Leases on a Dask cluster: each is a small task that holds a slot of a worker, where an agent runs the attempts.

Dask places the leases, counts them, and sees their number as demand, so an adaptive cluster grows and shrinks with it.
No attempt is a task of Dask's. So neither its retries nor its work stealing concern one.

The client of Dask has its own thread, and so have the commands to it: nothing here blocks the supervisor's thread.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ClassVar
from urllib.parse import urlsplit

from executor_adapter.exceptions.display import text_of
from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.cluster.dask_worker import hold_lease
from executor_adapter.pools.cluster.handshake import TOKEN_SIZE, Door
from executor_adapter.pools.cluster.leases import LeaseHolder, LeaseSource
from executor_adapter.pools.cluster.link import SocketEnd
from executor_adapter.pools.cluster.pool import RemotePool
from executor_adapter.pools.cluster.remote_agent import RemoteAgent

logger = logging.getLogger("executor_adapter.cluster")

RETRY_SECONDS = 1.0
"""Seconds after which a lease that a worker could not hold is asked for again."""


class DaskPool(RemotePool):
    """Runs attempts on the workers of a Dask cluster; without an address, on a local one that it starts."""

    name: ClassVar[str] = "dask"

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        address: str | None = None,
        listen_host: str | None = None,
        resources: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        cluster = _Cluster(address, max_workers)

        def make_source(pool: RemotePool) -> DaskLeases:
            return DaskLeases(pool, cluster, listen_host, resources)

        super().__init__(supervisor, max_workers, make_source, **options)


class _Cluster:
    """The client of a Dask cluster, and the cluster itself where it is a local one. Its own thread only."""

    def __init__(self, address: str | None, slots: int) -> None:
        self._address = address
        self._slots = slots
        self._local: Any = None
        self.client: Any = None

    def connect(self) -> str:
        """Connect to the cluster, or start a local one. Return the address of its scheduler.

        Raises:
            OSError: the scheduler cannot be reached.
        """
        import distributed  # Only here: programs that do not use it need not have it.

        engine: Any = distributed
        target: Any = self._address or self._local
        if self.client is not None:  # Its scheduler was lost.
            self.client.close(timeout=0)
        if target is None:
            # Its workers are threads of this program: they hold leases, and run no code of a job.
            self._local = target = engine.LocalCluster(
                n_workers=1,
                threads_per_worker=self._slots,
                processes=False,
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
            )
        self.client = engine.Client(target, set_as_default=False, name="executor-adapter")
        scheduler = str(self.client.scheduler.address)
        if scheduler.startswith("tls:"):
            raise ConnectionError(f"{scheduler} uses TLS, which pool='dask' cannot: use one without it")
        return scheduler

    @property
    def is_connected(self) -> bool:
        """Whether the client speaks with a scheduler."""
        return self.client is not None and self.client.status == "running"

    def close(self) -> None:
        """Close the client, and a local cluster too."""
        for each in (self.client, self._local):
            if each is not None:
                each.close()


class DaskLeases(LeaseSource):
    """Asks a Dask cluster for leases, and listens for the agents that they start."""

    def __init__(
        self, pool: LeaseHolder, cluster: _Cluster, listen_host: str | None, resources: dict[str, float] | None
    ) -> None:
        self._pool = pool
        self._supervisor = pool.supervisor
        self._cluster = cluster
        self._listen_host = listen_host
        self._resources = resources
        self._token = secrets.token_bytes(TOKEN_SIZE)
        self._door: Door | None = None
        self._last = 0
        self._wanted: dict[int, RemoteAgent | None] = {}
        """The leases that were asked for, with the agent that has reported it."""
        self._futures: dict[int, Any] = {}
        """The tasks that are not done, by the number of their lease. Own thread only."""
        self._commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_connecting = self._closing = False

    # --- leases ---

    def request(self, count: int) -> None:
        self._connect_once()
        for _ in range(count):
            self._last += 1
            self._wanted[self._last] = None
            if self._door is not None:
                self._submit(self._last)

    def withdraw(self, count: int) -> None:
        waiting = [lease for lease, agent in self._wanted.items() if agent is None]
        for lease in waiting[max(0, len(waiting) - count) :]:
            self._drop(lease)

    def accepts(self, lease: int) -> bool:
        return self._wanted.get(lease, self) is None

    def release(self, agent: RemoteAgent, lease: int) -> None:
        self._wanted.pop(lease, None)  # Its task ends by itself now.

    def on_granted(self, agent: RemoteAgent, lease: int) -> None:
        self._wanted[lease] = agent

    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        for lease in agent.leases:
            self._drop(lease)

    def _drop(self, lease: int) -> None:
        self._wanted.pop(lease, None)
        self._commands.put(lambda: self._cancel(lease))

    # --- the cluster ---

    def _connect_once(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="executor-dask", daemon=True)
            self._thread.start()
        if self._door is None and not self._is_connecting:
            self._is_connecting = True
            self._commands.put(self._connect)

    def _on_unreachable(self, why: str) -> None:
        self._is_connecting = False
        self._wanted.clear()
        self._pool.refused(f"the Dask scheduler cannot be reached: {why}")

    def _on_connected(self, scheduler: str) -> None:
        self._is_connecting = False
        if self._closing:
            return
        host = self._listen_host or host_towards(scheduler)
        try:
            self._door = Door(self._supervisor, host, self._token, self._on_agent)
        except OSError as error:
            self._pool.refused(f"cannot listen for agents on {host}: {text_of(error)}: set cluster.dask.listen_host")
            return
        for lease in self._wanted:
            self._submit(lease)

    def _on_agent(self, sock: socket.socket) -> None:
        self._pool.connect(SocketEnd(sock))

    def _submit(self, lease: int) -> None:
        assert self._door is not None
        head = {"address": list(self._door.address), "token": self._token.hex()}
        self._commands.put(lambda: self._try_to_submit(head, lease))

    def _on_task_done(self, lease: int, why: str, is_final: bool) -> None:
        """Ask again for a lease that no agent has reported; `why` it ended is "" if it was given back."""
        if self._wanted.get(lease, self) is not None or self._closing:
            return
        if is_final:
            del self._wanted[lease]
            self._pool.refused(why)
            return
        if why:
            self._pool.not_granted(f"the Dask cluster runs no jobs now: {why}")
        self._supervisor.call_at(self._supervisor.now() + RETRY_SECONDS, lambda: self._submit_again(lease))

    def _submit_again(self, lease: int) -> None:
        if lease in self._wanted and not self._closing:
            self._submit(lease)

    def close(self, on_closed: Callable[[], None]) -> None:
        self._closing = True
        if self._door is not None:
            self._door.close()
        if self._thread is None:
            on_closed()
            return
        self._commands.put(lambda: self._close_cluster(on_closed))
        self._commands.put(None)

    # --- its own thread ---

    def _run(self) -> None:
        while (command := self._commands.get()) is not None:
            try:
                command()
            except Exception:
                logger.exception("a command to the Dask cluster failed")
            del command  # It may hold a future, whose result Dask keeps for as long, and the worker with it.

    def _connect(self) -> None:
        try:
            scheduler = self._cluster.connect()
        except Exception as error:
            self._supervisor.call_soon(self._on_unreachable, text_of(error))
        else:
            self._supervisor.call_soon(self._on_connected, scheduler)

    def _try_to_submit(self, head: dict[str, Any], lease: int) -> None:
        try:
            self._submit_task(head, lease)
        except Exception as error:
            self._supervisor.call_soon(self._on_task_done, lease, f"no lease can be asked for: {text_of(error)}", False)

    def _submit_task(self, head: dict[str, Any], lease: int) -> None:
        if not self._cluster.is_connected:
            self._cluster.connect()
        future = self._futures[lease] = self._cluster.client.submit(
            hold_lease,
            head,
            lease,
            key=f"executor-adapter-lease-{head['token'][:8]}-{lease}",
            pure=False,
            retries=0,
            resources=self._resources,
        )
        future.add_done_callback(lambda done: self._commands.put(lambda: self._note_end(lease, done)))

    def _note_end(self, lease: int, future: Any) -> None:
        if self._futures.get(lease) is future:
            del self._futures[lease]
        if future.status == "error":
            error = future.exception()
            is_final = isinstance(error, ImportError)
            hint = ": install prefect-executor-adapter on the workers" if is_final else ""
            why = f"{type(error).__name__}: {text_of(error)}{hint}"
        else:
            is_final, why = False, future.result() if future.status == "finished" else ""
        self._supervisor.call_soon(self._on_task_done, lease, why, is_final)

    def _cancel(self, lease: int) -> None:
        future = self._futures.pop(lease, None)
        if future is not None:
            self._cluster.client.cancel([future], force=True)

    def _close_cluster(self, on_closed: Callable[[], None]) -> None:
        try:
            if self._futures:
                self._cluster.client.cancel(list(self._futures.values()), force=True)
            self._futures.clear()
            self._cluster.close()
        finally:
            self._supervisor.call_soon(on_closed)


def host_towards(address: str) -> str:
    """Return the address of this machine on the network by which it reaches another: nothing listens on other ones.

    `address`: a contact of Dask, such as tcp://10.0.0.5:8786. Workers within this process have none.
    """
    parts = urlsplit(address)
    if parts.scheme == "inproc" or parts.hostname is None:
        return "127.0.0.1"
    family = socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((parts.hostname, parts.port or 1))  # This sends nothing.
        return str(probe.getsockname()[0])
