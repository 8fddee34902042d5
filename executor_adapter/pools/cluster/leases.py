"""What places the attempts of a cluster: leases, and the sources that they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executor_adapter.job import Shape
    from executor_adapter.pools.cluster.remote_agent import RemoteAgent
    from executor_adapter.pools.transport.envelope import Body


class LeaseSource(ABC):
    """Obtains leases for one pool. Supervisor thread only; it never blocks that thread."""

    keeps_idle = False
    """Whether idle leases stay with the pool, since nobody else could use them."""

    @abstractmethod
    def ask(self, leases: Sequence[int]) -> None:
        """Ask for leases, whose shapes are in the books. Each is reported by `RemotePool.granted`, at any time."""

    @abstractmethod
    def withdraw(self, lease: int) -> None:
        """Ask for a lease no more. It may be granted all the same, and goes back then."""

    @abstractmethod
    def look_for_nodes(self, shapes: Collection[Shape]) -> None:
        """Report soon by `ShapeBooks.on_nodes_sought` which nodes could hold such leases, or why there are none.

        Called again and again while leases were asked for and not granted yet.
        """

    def look_for_others(self) -> None:  # noqa: B027
        """Report soon by `RemotePool.others_wait` what others wait for, where others can."""

    def on_granted(self) -> None:  # noqa: B027
        """Take note that the pool holds one lease more."""

    @abstractmethod
    def release(self, agent: RemoteAgent, lease: int) -> None:
        """Give a lease back."""

    def lend(self, agent: RemoteAgent, attempt: int, references: tuple[Any, ...]) -> None:  # noqa: B027
        """Give the engine's process on the agent's node the references of an attempt until that is over.

        Called again with none where it is over, and the agent is not.
        """

    def on_kept(self, body: Body) -> None:  # noqa: B027
        """Open soon what a job has returned whose result stays on a node: so the data lives as long as the body."""

    def on_ready(self, agent: RemoteAgent) -> None:  # noqa: B027
        """Take note that the agent has said HELLO and is accepted."""

    @abstractmethod
    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        """Take note that an agent is gone, and all leases on its node with it."""

    @abstractmethod
    def close(self, on_closed: Callable[[], None]) -> None:
        """End what this source has started, then call `on_closed`. All agents are gone."""
