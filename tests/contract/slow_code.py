"""Objects and errors whose code notes where it runs; workers import this module, so it needs the stdlib alone."""

from __future__ import annotations

import threading
import time
from typing import Any

seen: list[tuple[str, str]] = []
"""What was called, and on which thread of this process."""


def note(what: str) -> None:
    seen.append((what, threading.current_thread().name))


def threads_of(*names: str) -> set[str]:
    """Return the threads on which these were called."""
    return {thread for what, thread in seen if what in names}


class Slow:
    """Notes where it is unpickled and freed, and takes its time for both."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        self.name, self.seconds = name, seconds

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        note(f"unpickled {self.name}")
        if threading.current_thread().name != "MainThread":  # The worker checks its result too.
            time.sleep(self.seconds)

    def __del__(self) -> None:
        note(f"freed {self.name}")


class SlowError(Exception):
    """Notes where anything of it is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.held = Slow(name)

    def __reduce__(self) -> Any:
        return SlowError, self.args

    def __str__(self) -> str:
        note("str")
        return "slow"

    def __repr__(self) -> str:
        note("repr")
        return "slow"

    def __eq__(self, other: object) -> bool:
        note("eq")
        return self is other

    __hash__ = Exception.__hash__

    @property
    def error_code(self) -> str:
        note("error_code")
        return "SLOW_ERROR"

    @property
    def retry_after(self) -> float:
        note("retry_after")
        return 0.0

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        note("class")
        return SlowError


def return_slow(name: str, seconds: float = 0.0) -> Slow:
    return Slow(name, seconds)


def raise_slow(name: str) -> None:
    raise SlowError(name)


def accept(_: Any) -> None:
    pass
