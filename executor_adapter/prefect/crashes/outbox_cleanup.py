"""Sends what lies in the outbox's file, and removes what is too old to be of use, for a maintenance flow."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from executor_adapter.prefect.mirror.mirror import PrefectMirror
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.server_api import DAY_SECONDS, server_name

logger = logging.getLogger("executor_adapter.prefect")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxCleanUp:
    """What became of the states in the outbox's file."""

    sent: int
    """States that the server has recorded by now."""
    removed: int
    """States that were older than allowed, for whatever server. They are lost."""
    left: int
    """States for the server that are left: newer ones, and those of processes that are alive."""


def clean_outbox(*, max_age_days: float = 30.0) -> OutboxCleanUp:
    """Send the states in the outbox of this machine to the current server, then remove those that are too old.

    The outbox holds states that a process could not send. Old ones are mostly for a server that no longer exists.

    Raises:
        OSError, sqlite3.Error: the file cannot be used.
    """
    file = OutboxFile(server_name())
    before = file.count()
    with PrefectMirror() as mirror:
        mirror.send_inherited()
    sent = max(0, before - file.count())
    removed = file.delete_old(time.time() - max_age_days * DAY_SECONDS)
    if removed:
        logger.warning("removed %d states from the outbox that were older than %g days", removed, max_age_days)
    return OutboxCleanUp(sent=sent, removed=removed, left=file.count())
