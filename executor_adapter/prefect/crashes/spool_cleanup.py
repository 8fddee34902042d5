"""Sends what lies in the spool, and removes what is too old to be of use, for a maintenance flow."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from executor_adapter.prefect.mirror.mirror import PrefectMirror
from executor_adapter.prefect.mirror.server_api import DAY_SECONDS, server_name
from executor_adapter.prefect.mirror.spool import Spool

logger = logging.getLogger("executor_adapter.prefect")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolCleanUp:
    """What became of the files in the spool."""

    sent: int
    """Files whose states the server has recorded by now."""
    removed: int
    """Files that were older than allowed, for whatever server. Their states are lost."""
    left: int
    """Files that are left: newer ones, and those of processes that are alive."""


def clean_spool(*, max_age_days: float = 30.0) -> SpoolCleanUp:
    """Send the final states in the spool of this machine to the current server, then remove files that are too old.

    The spool holds states that a process could not send. Old files are mostly those for a server that no longer exists.
    """
    spool = Spool(server_name())
    before = len(_files(spool.directory))
    if not spool.is_empty:
        with PrefectMirror() as mirror:
            mirror.drain()
    left = _files(spool.directory)
    sent = max(0, before - len(left))
    removed = sum(_remove_if_old(path, time.time() - max_age_days * DAY_SECONDS) for path in left)
    if removed:
        logger.warning("removed %d spool files that were older than %g days", removed, max_age_days)
    return SpoolCleanUp(sent=sent, removed=removed, left=len(left) - removed)


def _files(directory: Path) -> list[Path]:
    """Return the files of states, and those that a process left while it wrote them, for all servers."""
    return sorted(path for path in directory.glob("*") if path.suffix in {".jsonl", ".new"})


def _remove_if_old(path: Path, oldest: float) -> bool:
    """Remove a file that was last written before the time `oldest`, unless a process holds it."""
    with contextlib.suppress(OSError):  # It is locked, or was sent and removed by another process.
        if path.stat().st_mtime >= oldest:
            return False
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    return False
