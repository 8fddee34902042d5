"""What runs in a Dask worker: tasks that hold leases, and the agent's process beside the worker.

A lease is one task that waits in a thread of the worker, so Dask counts the slot that is in use. The first lease starts
an agent, as a process of its own: the worker's event loop and its jobs do not contend for one interpreter, and the end
of the worker's process is seen as the end of the agent's stdin.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import weakref
from collections.abc import Coroutine
from typing import Any

from executor_adapter.job import GPU, units_of
from executor_adapter.pools.cluster.engines.agent_process import AgentProcess
from executor_adapter.pools.cluster.handshake import RELAY_BYTES
from executor_adapter.pools.cluster.node_data import Kept
from executor_adapter.pools.gpus import GpuShares, gpu_environment, gpu_ids

_STATUS_INTERVAL = 0.2
"""Seconds between two looks at whether the worker is about to leave."""
UNREAD_SECONDS = 60.0
"""Seconds after the end of a relayed agent in which its head, if that lives, has read the rest of its stream."""

_agents: dict[str, AgentProcess] = {}
"""The agent of each head, by its token."""
_gpus: weakref.WeakKeyDictionary[Any, GpuShares] = weakref.WeakKeyDictionary()
"""The GPUs of each worker of this process, whatever heads hold them."""
_lock = threading.Lock()
relayed: dict[str, socket.socket] = {}
"""The streams of agents whose heads this host does not reach, by the names of their links."""


def hold_lease(head: dict[str, Any], lease: int, gpus: float = 0) -> str:
    """Hold a slot of this worker for a head until that gives it back. Return why it ended.

    `head`: the address at which it listens, its token, and whether it speaks TLS. `gpus`: how many of the worker's
    GPUs the lease has.
    """
    from distributed import get_worker

    worker = get_worker()
    if not gpus:
        return _hold(worker, head, lease, {})
    with _lock:
        shares = _gpus_of(worker).choose(units_of(gpus))
        _gpus_of(worker).take(shares)
    if not shares:
        return f"no GPU of {worker.address} has a free share of {gpus:g}: others hold smaller ones of each"
    try:
        return _hold(worker, head, lease, gpu_environment(shares))
    finally:
        with _lock:
            _gpus_of(worker).give_back(shares)


def _gpus_of(worker: Any) -> GpuShares:
    """Return the GPUs of a worker. Dask counts them, and not which ones they are."""
    if worker not in _gpus:
        _gpus[worker] = GpuShares(gpu_ids(int(worker.state.total_resources.get(GPU, 0))))
    return _gpus[worker]


def _hold(worker: Any, head: dict[str, Any], lease: int, environment: dict[str, str]) -> str:
    key = worker.get_current_task()
    agent = _agent_of(head, worker)
    released = agent.hold(lease, environment)
    while not released.wait(_STATUS_INTERVAL):
        if worker.status.name != "running":
            agent.leave()
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            # The head has lost the agent, or needs the lease no more. A stopped agent must not keep the slot.
            agent.end_if_stuck(lease)
            break
    return agent.why_ended(lease)


def _agent_of(head: dict[str, Any], worker: Any) -> AgentProcess:
    token, link = head["token"], secrets.token_hex(8)

    def report(agent: AgentProcess, why: str | None) -> None:
        """Let the head read and write the stream of an agent that does not reach it; forget one that has ended."""
        if why is None:
            agent.link.setblocking(False)
            relayed[link] = agent.link
            worker.handlers.update(agent_read=_read, agent_write=_write)
            worker.log_event(f"executor-adapter-relay-{token[:8]}", [worker.address, link])
            return
        with _lock:
            if _agents.get(token) is agent:
                del _agents[token]
        if link in relayed:
            worker.loop.add_callback(worker.loop.call_later, UNREAD_SECONDS, _close, link)

    with _lock:
        agent = _agents.get(token)
        if agent is None or agent.ended is not None:
            certificates = worker.security.get_tls_config_for_role("worker") if head["tls"] else None
            data = _WorkerData(worker, token, head["client"])
            setup = {**head, "certificates": certificates}
            agent = _agents[token] = AgentProcess(setup, worker.address, data, report)
        return agent


async def _read(link: str) -> bytes:
    if not (part := await asyncio.get_running_loop().sock_recv(relayed[link], RELAY_BYTES)):
        _close(link)
    return part


def _close(link: str) -> None:
    """Forget the stream of an agent, which was read to its end or is not read any more."""
    if (sock := relayed.pop(link, None)) is not None:
        sock.close()


async def _write(link: str, part: bytes) -> None:
    sock = relayed.get(link)
    if sock is not None and part:
        await asyncio.get_running_loop().sock_sendall(sock, part)
    elif sock is not None:
        sock.shutdown(socket.SHUT_WR)


class _WorkerData:
    """Reaches the data of the Dask cluster on the worker's event loop: leases hold all its threads.

    `head`, `client`: the head's token, and the client of its that holds what is kept.
    """

    def __init__(self, worker: Any, head: str, client: str) -> None:
        self._worker = worker
        self._head = head
        self._client = client

    def fetch(self, name: Any) -> Any:
        return self._run(self._fetch(name))

    def keep(self, name: str, value: Any) -> Kept:
        self._run(self._keep(name, value))
        return Kept(self._head, name, self._worker.address)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._worker.loop.asyncio_loop).result()

    async def _fetch(self, key: Any) -> Any:
        from distributed.utils_comm import gather_from_workers

        if key in self._worker.data:
            return self._worker.data[key]
        holders = (await self._worker.scheduler.who_has(keys=[key])).get(key)
        if holders:
            found, _, failed, _ = await gather_from_workers({key: holders}, rpc=self._worker.rpc)
            if key in found:
                return found[key]
            if failed:
                raise LookupError(f"no worker can unpickle the data of {key}")
        raise LookupError(f"no worker of the cluster at {self._worker.scheduler.address} has the data of {key}")

    async def _keep(self, key: str, value: Any) -> None:
        from dask.sizeof import sizeof

        self._worker.update_data(data={key: value})
        await self._worker.scheduler.update_data(
            who_has={key: [self._worker.address]}, nbytes={key: sizeof(value)}, client=self._client
        )
