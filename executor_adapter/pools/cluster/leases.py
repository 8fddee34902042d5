"""What places the attempts of a cluster: leases, and the sources that they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from executor_adapter.job import Shape
    from executor_adapter.pools.base import PoolSupervisor
    from executor_adapter.pools.cluster.link import LinkEnd
    from executor_adapter.pools.cluster.remote_agent import RemoteAgent


class LeaseHolder(Protocol):
    """Defines what a source of leases asks of its pool, and reports to it. Supervisor thread only."""

    supervisor: PoolSupervisor

    def connect(self, end: LinkEnd, node: str = "") -> RemoteAgent:
        """Speak with the agent at the other end of a stream. `node`: its name; by default the one that it says."""

    def granted(self, agent: RemoteAgent, lease: int) -> None:
        """Take a lease on the agent's node: one more attempt may run there."""

    def not_granted(self, why: str) -> None:
        """Take note that leases cannot be had now; the source keeps trying. `why` is shown, and logged once."""

    def nodes_sought(self, shape: Shape, nodes: Collection[str], why: str, is_fixed: bool) -> None:
        """Take note which nodes could hold a lease of a shape that was asked for.

        `why`: in words, why none could, or "". `is_fixed`: no further node will join.
        """

    def others_wait(self, waiting: Mapping[str, int]) -> None:
        """Take note for how many slots others wait on each node, by the engine's books."""

    def refused(self, why: str) -> None:
        """Take note that no further try can help: what waits for a lease fails with `why`."""


class LeaseSource(ABC):
    """Obtains leases for one pool. Supervisor thread only; it never blocks that thread."""

    keeps_idle = False
    """Whether idle leases stay with the pool, since nobody else could use them."""

    @abstractmethod
    def request(self, count: int, shape: Shape = ()) -> None:
        """Ask for so many leases more. Each is reported by `LeaseHolder.granted`, in any order, at any time.

        `shape`: what each takes of its node in place of what a plain slot takes.
        """

    @abstractmethod
    def withdraw(self, count: int, shape: Shape = ()) -> None:
        """Ask for so many leases less. One may be granted all the same, and is released then."""

    @abstractmethod
    def explain_lack(self) -> None:
        """Report soon by `LeaseHolder.nodes_sought` which nodes could hold a plain lease, or why there is none."""

    def look_for_others(self) -> None:  # noqa: B027
        """Report soon by `LeaseHolder.others_wait` what others wait for, where others can."""

    def shape_of(self, lease: int) -> Shape:
        """Return the shape of a lease that was asked for."""
        return ()

    def accepts(self, lease: int) -> bool:
        """Return whether a lease that an agent reports is still wanted."""
        return True

    @abstractmethod
    def release(self, agent: RemoteAgent, lease: int) -> None:
        """Give a lease back."""

    def lend(self, agent: RemoteAgent, references: tuple[Any, ...]) -> None:  # noqa: B027
        """Give the engine's process on the agent's node the references of an attempt that is about to be sent."""

    def on_granted(self, agent: RemoteAgent, lease: int) -> None:  # noqa: B027
        """Take note that the pool holds a lease."""

    def on_ready(self, agent: RemoteAgent) -> None:  # noqa: B027
        """Take note that the agent has said HELLO and is accepted."""

    @abstractmethod
    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        """Take note that an agent is gone, and all leases on its node with it."""

    @abstractmethod
    def close(self, on_closed: Callable[[], None]) -> None:
        """End what this source has started, then call `on_closed`. All agents are gone."""
