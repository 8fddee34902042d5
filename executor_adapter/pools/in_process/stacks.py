"""Shows where the function that a thread runs is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any

from executor_adapter.exceptions.display import set_traceback
from executor_adapter.worker.stacks import position_text, traceback_of_function

_ACQUIRING = ("logging._acquireLock", "logging.acquire", "threading.__enter__", "multiprocessing.synchronize.__enter__")
"""The functions of the standard library that take a lock for their caller."""


def position_in(thread: threading.Thread, coroutine: Coroutine[Any, Any, Any] | None = None) -> str:
    """Return where the function that the thread runs is, in the form of a traceback; empty if it is in C code alone.

    `coroutine`: what the function returned, if it is a coroutine.
    """
    return position_text(_frame_of(thread), coroutine)


def is_acquiring(thread: threading.Thread) -> bool:
    """Return whether the thread is in a function that returns with a lock held, such as `Condition.__enter__`.

    What is raised there from outside comes when the lock has just been taken, before anybody is to give it back.
    """
    frame = _frame_of(thread)
    return frame is not None and f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}" in _ACQUIRING


def _frame_of(thread: threading.Thread) -> FrameType | None:
    return sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  public, in spite of its name


def with_own_frames(error: BaseException) -> BaseException:
    """Return the error, with the frames that called the function removed from its traceback."""
    set_traceback(error, traceback_of_function(error.__traceback__))
    return error
