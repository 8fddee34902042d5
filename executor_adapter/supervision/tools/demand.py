"""What an executor needs of limits that it shares with other executors, and who gets it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from executor_adapter.job import ToolLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolDemand:
    """What an executor holds and needs of one tool."""

    tool_name: str
    limit: ToolLimit
    """The executor's own limit."""
    keep: int = 0
    """Slots that it goes on to hold; it gives back all others."""
    want: int = 0
    """Slots that it can use now, those that it keeps included."""
    starts: int = 0
    """Starts that it can use now, where the tool has a rate."""
    has_more: bool = False
    """Whether jobs wait beyond that."""
    close_for: float = 0.0
    """Seconds for which no executor may start another attempt."""
    number: int = 0
    """The number of shares that the executor had got when it said so."""

    @property
    def waits(self) -> bool:
        """Whether it needs more than it holds."""
        return self.want > self.keep or self.starts > 0


class SharedLimits(Protocol):
    """Gets the executor's shares of tools. Both methods return at once and are for the supervisor's thread."""

    def ask(self, demand: ToolDemand) -> None:
        """Ask for what the demand says, instead of what was said before; `RateLimiter.on_share` gets the answer."""

    def refresh(self) -> None:
        """Find out what holds for all tools; `RateLimiter.on_controls` gets the answer."""
