"""Says in one line which jobs failed without anybody reading their future, so that no failure goes unnoticed.

A future that the program still holds when its executor closes may be read afterwards: it is looked at again when the
interpreter exits.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import weakref
from concurrent.futures import Future
from typing import Any

logger = logging.getLogger("executor_adapter")

MAX_KEPT = 1000
"""Unread failures of one executor that are kept; further ones are not reported."""
MAX_NAMED = 3
"""Jobs that the line names."""
MAX_MESSAGE_LENGTH = 200

_at_exit: list[UnreadFailures] = []


class UnreadFailures:
    """Holds the futures of failed jobs that nobody has read. Any thread may use it."""

    def __init__(self) -> None:
        self.is_off = False
        """Whether somebody else is told of each job, as observers are."""
        self._keys = itertools.count()
        self._failures: dict[int, tuple[weakref.ref[Future[Any]], str]] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def add(self, future: Future[Any], failure: str) -> int | None:
        """Note a failed job's future; return the key to `remove` it with when it is read."""
        if self.is_off or len(self._failures) >= MAX_KEPT:
            return None
        key = next(self._keys)
        self._failures[key] = weakref.ref(future), failure[:MAX_MESSAGE_LENGTH]
        return key

    def remove(self, key: int) -> None:
        """Note that a future was read."""
        self._failures.pop(key, None)

    def report(self) -> None:
        """Report the futures that nobody holds any more, as the executor closes, and the others at the exit."""
        dropped = {key: failure for key, (future, failure) in list(self._failures.items()) if future() is None}
        for key in dropped:
            del self._failures[key]
        _log(list(dropped.values()))
        _at_exit[:] = [unread for unread in (*_at_exit, self) if len(unread)]

    def report_all(self) -> None:
        """Report every future that nobody has read."""
        _log([failure for _, failure in self._failures.values()])


def _log(failures: list[str]) -> None:
    if failures:
        more = f"; and {len(failures) - MAX_NAMED} more" if len(failures) > MAX_NAMED else ""
        named = "; ".join(failures[:MAX_NAMED])
        logger.error("jobs that failed without anybody reading their future: %d: %s%s", len(failures), named, more)


if hasattr(os, "register_at_fork"):  # The parent reports them.
    os.register_at_fork(after_in_child=_at_exit.clear)


@atexit.register
def _report_at_exit() -> None:
    for unread in _at_exit:
        unread.report_all()
