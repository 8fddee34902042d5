"""Watches workers that are starting: warns of those that take long, and gives up on those that take too long."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Hashable

from executor_adapter.exceptions import WorkerUnavailableError
from executor_adapter.pools.base import PoolSupervisor, Timer
from executor_adapter.pools.patience import Patience

logger = logging.getLogger("executor_adapter.process")

FIRST_WARNING = 10.0
"""Seconds after which a start is warned of; each further warning comes after twice the time."""

GiveUp = Callable[[WorkerUnavailableError], None]


class StartWatch:
    """Watches what is starting: each has `limit` seconds, or any time if that is None.

    One warning covers all that hang, since they do so for the same reason.
    """

    def __init__(self, supervisor: PoolSupervisor, limit: float | None) -> None:
        self._supervisor = supervisor
        self._limit = limit
        self._starting: dict[Hashable, tuple[float, str, Patience | None]] = {}
        self._warn_after = FIRST_WARNING
        self._warning: Timer | None = None

    def add(self, who: Hashable, what: str, give_up: GiveUp) -> None:
        """Watch `who`, which is starting now; `what` says in words what it does until it is ready."""
        patience = None
        if self._limit is not None:
            patience = Patience(self._supervisor, self._limit, functools.partial(self._on_limit, who, give_up))
        self._starting[who] = (self._supervisor.now(), what, patience)
        if self._warning is None:
            self._warn_after = FIRST_WARNING if self._limit is None else min(FIRST_WARNING, self._limit / 2)
            self._schedule_warning(self._supervisor.now())

    def remove(self, who: Hashable) -> None:
        """Watch `who` no longer: it is ready, or has ended."""
        _, _, patience = self._starting.pop(who, (0.0, "", None))
        if patience is not None:
            patience.cancel()
        if not self._starting and self._warning is not None:
            self._warning.cancel()
            self._warning = None

    def _schedule_warning(self, began: float) -> None:
        self._warning = self._supervisor.call_at(began + self._warn_after, self._warn)

    def _warn(self) -> None:
        began, what, _ = next(iter(self._starting.values()))  # The oldest.
        if self._supervisor.now() - began >= self._warn_after:
            then = "no limit is set" if self._limit is None else f"they fail after start_timeout={self._limit} s"
            logger.warning("%s, and is not ready after %.3g s; jobs wait for it: %s", what, self._warn_after, then)
            self._warn_after *= 2
        self._schedule_warning(began)

    def _on_limit(self, who: Hashable, give_up: GiveUp) -> None:
        _, what, _ = self._starting[who]
        self.remove(who)
        limit = f"start_timeout={self._limit} s: mend that, or raise executor.start_timeout"
        give_up(WorkerUnavailableError(f"{what}, and was not ready within {limit}"))
