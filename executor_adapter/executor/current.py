"""Stores, in a context variable, which executor the running code has entered."""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable
from typing import Any, NamedTuple

FindExecutor = Callable[[], Any]
"""Returns a JobExecutor. This module does not import that class: its module imports this one."""


class Entry(NamedTuple):
    """An executor that was entered, and the process in which that happened."""

    pid: int
    find: FindExecutor


EntryToken = contextvars.Token[Entry | None]

_current: contextvars.ContextVar[Entry | None] = contextvars.ContextVar("executor", default=None)


def enter_executor(find: FindExecutor) -> EntryToken:
    """Make `find()` the current executor from here on. It is called when a job first needs an executor."""
    return _current.set(Entry(os.getpid(), find))


def leave_executor(token: EntryToken) -> None:
    """Undo `enter_executor`. Does nothing in a context other than the one that entered."""
    with contextlib.suppress(ValueError):
        _current.reset(token)


def entered_executor() -> FindExecutor | None:
    """Return how to get the executor that was entered last; None where none was, or only before this process forked."""
    entry = _current.get()
    return entry.find if entry is not None and entry.pid == os.getpid() else None
