"""What runs in a Dask worker: tasks that hold leases, and the agent's process beside the worker.

A lease is one task that waits in a thread of the worker, so Dask counts the slot that is in use. The first lease starts
an agent, as a process of its own: the worker's event loop and its jobs do not contend for one interpreter, and the end
of the worker's process is seen as the end of the agent's stdin.
"""

from __future__ import annotations

import threading
from typing import Any

from executor_adapter.pools.cluster.engines.agent_process import AgentProcess

_STATUS_INTERVAL = 0.2
"""Seconds between two looks at whether the worker is about to leave."""

_agents: dict[str, AgentProcess] = {}
"""The agent of each head, by its token."""
_lock = threading.Lock()


def hold_lease(head: dict[str, Any], lease: int) -> str:
    """Hold a slot of this worker for a head until that gives it back. Return why it ended.

    `head`: the address at which it listens, and its token.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    agent = _agent_of(head, worker.address)
    released = agent.hold(lease)
    while not released.wait(_STATUS_INTERVAL):
        if worker.status.name != "running":
            agent.leave()
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            # The head has lost the agent, or needs the lease no more. A stopped agent must not keep the slot.
            agent.end_if_stuck()
            break
    return agent.why_ended(lease)


def _agent_of(head: dict[str, Any], node: str) -> AgentProcess:
    token = head["token"]

    def forget(ended: AgentProcess) -> None:
        with _lock:
            if _agents.get(token) is ended:
                del _agents[token]

    with _lock:
        agent = _agents.get(token)
        if agent is None or agent.has_ended:
            agent = _agents[token] = AgentProcess(head, node, forget)
        return agent
