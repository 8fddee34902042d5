"""What a mirror has to say of its work."""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger("executor_adapter.prefect")

SHOWN = 10
"""Ids that the report's text names, of each kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorReport:
    """How far the server's record of the mirrored jobs goes. Jobs are named by their ids."""

    jobs: int
    """Jobs that were mirrored."""
    recorded: int
    """Of these: the server is known to have their true final state."""
    resent: int = 0
    """Final states told once more, since the server had lost them."""
    omitted: int = 0
    """States not told since the jobs had passed through them and were over: see `history`."""
    spooled: tuple[str, ...] = ()
    """Jobs whose final state waits on disk: the next mirror for this server brings it there."""
    missing: tuple[str, ...] = ()
    """Jobs whose final state the server does not have, and nothing will bring there."""
    unfinished: tuple[str, ...] = ()
    """Jobs that are not over."""

    @property
    def complete(self) -> bool:
        """Whether the server has the true final state of every job."""
        return not (self.spooled or self.missing or self.unfinished) and self.recorded >= self.jobs

    def log(self) -> None:
        """Say what is not as one would have it."""
        if not self.complete:
            logger.warning("not all jobs are recorded: %s", self)
        elif self.omitted:
            logger.info("%s: history='full' tells them all", self)

    def __str__(self) -> str:
        told = [f"the server has the final state of {self.recorded} of {self.jobs} jobs"]
        for what, ids in (
            ("spooled on disk for the next start", self.spooled),
            ("missing", self.missing),
            ("not over", self.unfinished),
        ):
            if ids:
                more = ", ..." if len(ids) > SHOWN else ""
                told.append(f"{len(ids)} {what}: {', '.join(ids[:SHOWN])}{more}")
        if self.omitted:
            told.append(f"{self.omitted} passed states left out")
        return "; ".join(told)
