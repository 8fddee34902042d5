"""What runs in a process of Ray's on a node: the actor that starts the agent there and tells it of leases."""

from __future__ import annotations

from typing import Any

from executor_adapter.pools.cluster.engines.agent_process import AgentProcess


class NodeActor:
    """Starts the agent of one head on one node. The agent ends with the process of the actor."""

    def __init__(self, head: dict[str, Any], node: str) -> None:
        self._agent = AgentProcess(head, node)

    def hold(self, lease: int) -> None:
        """Tell the agent of a lease."""
        self._agent.hold(lease)

    def wait_for_end(self) -> str:
        """Wait until the agent has ended, and return why."""
        return self._agent.wait_for_end()
