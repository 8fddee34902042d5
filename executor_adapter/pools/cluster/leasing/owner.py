"""What the books of leases need of their pool."""

from __future__ import annotations

from typing import ClassVar, Protocol

from executor_adapter.job import Shape
from executor_adapter.pools.base import Assignment, PoolSupervisor
from executor_adapter.pools.cluster.leasing.shaped_lease import ShapedLease
from executor_adapter.pools.cluster.remote_agent import RemoteAgent


class LeasesOwner(Protocol):
    """Defines what the books of leases need of their pool. Supervisor thread only."""

    name: ClassVar[str]
    supervisor: PoolSupervisor
    agents: list[RemoteAgent]
    busy: int
    max_workers: int

    @property
    def is_closing(self) -> bool:
        """Whether no attempt will be started any more."""

    @property
    def slots(self) -> int:
        """Number of slots that the pool has."""

    def give(self, agent: RemoteAgent, assignment: Assignment, lease: ShapedLease | None = None) -> None:
        """Send an attempt, on a slot or on a lease of its own."""

    def may_ask_for(self, shape: Shape) -> bool:
        """Return whether leases of a shape may be asked for now."""

    def ask_for(self, count: int, shape: Shape) -> None:
        """Ask for so many leases more, or less where the number is negative."""

    def explain_lack(self) -> None:
        """Find out why there is no slot; `SlotQueue.on_nodes_sought` is told."""

    def count_leases(self, shape: Shape) -> int:
        """Return the number of leases of a shape, used or free."""

    def release(self, agent: RemoteAgent) -> None:
        """Give back a slot of an agent that no attempt uses."""

    def release_shaped(self, agent: RemoteAgent, lease: ShapedLease) -> None:
        """Give a free lease back."""

    def close_unused(self, agent: RemoteAgent) -> None:
        """Let an agent without a lease end, unless leases have just gone back for others: some may follow soon."""

    def look_for_others(self) -> None:
        """Find out what others wait for; `LeaseWatch.on_others` is told."""
