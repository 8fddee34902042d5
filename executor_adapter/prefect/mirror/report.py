"""The report of a mirror: how far the server's record of its jobs goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

logger = logging.getLogger("executor_adapter.prefect")

MAX_NAMED_IDS = 10
"""Job ids of each kind that the report's text names."""

FIRST_NOTICE = 2.0
"""Seconds after which a caller that waits is told first."""
NOTICE_INTERVAL = 5.0
"""Seconds between two notices to a caller who waits for the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorReport:
    """Describes how far the server has recorded the mirrored jobs. The tuples hold job ids."""

    jobs: int
    """Jobs that were mirrored."""
    recorded: int
    """Jobs whose true final state the server is known to have."""
    resent: int = 0
    """Final states that were sent again, because the server had lost them."""
    omitted: int = 0
    """Intermediate states that were not sent, because their jobs had finished: see `history` of PrefectMirror."""
    kept: tuple[str, ...] = ()
    """Jobs whose final state is in the outbox on disk: the next mirror for this server sends it."""
    missing: tuple[str, ...] = ()
    """Jobs whose final state the server does not have, and will not get."""
    dropped: int = 0
    """Further such jobs, without their ids: neither the server nor the disk took the states of a hundred thousand."""
    unfinished: tuple[str, ...] = ()
    """Jobs that have not finished."""

    @property
    def complete(self) -> bool:
        """Whether the server has the true final state of every job."""
        return not (self.kept or self.missing or self.dropped or self.unfinished) and self.recorded >= self.jobs

    def log(self) -> None:
        """Log a warning if final states are not recorded, and a note if intermediate states were omitted."""
        if not self.complete:
            logger.warning("not all jobs are recorded: %s", self)
        elif self.omitted:
            logger.info("%s: use history='full' to send them all", self)

    def __str__(self) -> str:
        parts = [f"the server has the final state of {self.recorded} of {self.jobs} jobs"]
        for what, ids in (
            ("kept on disk for the next start", self.kept),
            ("missing", self.missing),
            ("unfinished", self.unfinished),
        ):
            if ids:
                more = ", ..." if len(ids) > MAX_NAMED_IDS else ""
                parts.append(f"{len(ids)} {what}: {', '.join(ids[:MAX_NAMED_IDS])}{more}")
        if self.dropped:
            parts.append(f"{self.dropped} dropped")
        if self.omitted:
            parts.append(f"{self.omitted} intermediate states omitted")
        return "; ".join(parts)


class WaitNotice:
    """Says every few seconds how far the server is, while a caller waits for it."""

    def __init__(self, limit: str) -> None:
        self._limit = limit
        self._due_at = time.monotonic() + min(FIRST_NOTICE, NOTICE_INTERVAL)

    def update(self, report: Callable[[], MirrorReport], *, is_away: bool) -> None:
        """Log a notice if one is due: in the log of the flow run around the caller, unless the server is away."""
        if time.monotonic() < self._due_at:
            return
        self._due_at = time.monotonic() + NOTICE_INTERVAL
        found = report()
        over = "" if found.unfinished else "all jobs are over; "
        away = ", which does not answer" if is_away else ""
        text = (
            f"{over}waiting for the Prefect server{away}: {found.recorded:,} of {found.jobs:,} recorded ({self._limit})"
        )
        try:
            log = get_logger("executor_adapter") if is_away else get_run_logger()
        except MissingContextError:
            log = get_logger("executor_adapter")
        log.info(text)
