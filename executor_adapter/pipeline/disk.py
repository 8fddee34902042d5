"""Files that are complete or not there: written under a temporary name, synced and renamed; and locks on folders.

Names are not synced: each would cost a write to the disk, and file systems with a journal keep their order. So a power
cut may undo the last seconds, and the next run does them again.

What the disk or its permissions refuse is raised in one line, without a traceback.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from executor_adapter.exceptions import DataCollectionException

TEMPORARY = ".tmp-"
"""How the names of unfinished files begin. Readers of Parquet folders pass over names with a dot."""
LOCK_INTERVAL = 0.05
"""Seconds between two attempts to take a lock."""

_SETUP = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what the system refuses in the block as one line.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR for rights and names; DISK_FULL for space, which is retried.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _SETUP | _FULL:
            raise
        code = "DISK_FULL" if error.errno in _FULL else "CONFIGURATION_ERROR"
        said = f"{error.filename or path}: {os.strerror(error.errno or 0)}"
        raise DataCollectionException(said, error_code=code) from None


@contextmanager
def writing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` when the block ends, and is removed if the block raises.

    Readers see the old file or the whole new one. After a power cut too, unless `sync` is False: then whoever reads it
    must recognise a part of it.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-{path.name}")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)


def publish(temporary: Path, target: Path) -> None:
    """Put a whole file, whose content is synced, in its place; readers see the old one or the new one.

    The caller holds a lock on it, in whose block it is explained what the system refuses.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary.rename(target)


@contextmanager
def locked(path: Path, *, timeout: float = 60.0) -> Iterator[None]:
    """Hold the lock on the file `path` in the block, see also `explained`; it is made where it is missing.

    The kernel releases the lock when its holder dies in any way. Each call opens the file, so threads wait too.

    Args:
        path: the file of the lock.
        timeout: seconds to wait; 0: do not wait.

    Raises:
        DataCollectionException: LOCKED, somebody else holds it for longer; it is retried.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lock:
            _wait_for(lock.fileno(), path, timeout)
            yield


def _wait_for(descriptor: int, path: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() >= end:
            raise DataCollectionException(
                f"{path.parent}: another job has held the lock for {timeout:g} seconds: wait until it ends",
                error_code="LOCKED",
            )
        time.sleep(LOCK_INTERVAL)


def digest_of(*parts: Any) -> str:
    """Return the SHA-256 of values as JSON, in hexadecimal."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def checksum_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
