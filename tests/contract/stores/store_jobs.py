"""Job functions of stored executors; they can be imported, as a durable store requires."""

from __future__ import annotations

import os
import time
from pathlib import Path

from executor_adapter import current_job
from executor_adapter.exceptions import DataCollectionException


def give(value: object) -> object:
    return value


def backwards(text: str) -> str:
    return text[::-1]


def count_run(path: str, seconds: float = 0.0) -> int:
    """Return the number of runs so far, those of other processes included."""
    with Path(path).open("a") as file:
        file.write("x")
    time.sleep(seconds)
    return Path(path).stat().st_size


def wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.005)


def end_slowly(path: str, go: str) -> str:
    """Run until it is stopped in the first run, and then end only when `go` exists."""
    if not Path(path).exists():
        try:
            Path(path).touch()
            time.sleep(30)
        finally:
            wait_for_file(go)
    return "again"


def die() -> None:
    os._exit(3)


def fail(code: int = 1) -> None:
    raise LookupError(f"on purpose {code}")


def lose_connection() -> None:
    raise ConnectionError("on purpose")


def report(done: float, path: str) -> None:
    current_job().progress(done, 10, "half way")
    wait_for_file(path)


def fail_with(message: str, code: str) -> None:
    raise DataCollectionException(message, error_code=code)
