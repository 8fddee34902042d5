"""Shows where the function that a thread runs is."""

from __future__ import annotations

import sys
import threading
from collections.abc import Coroutine
from typing import Any

from executor_adapter.exceptions.display import set_traceback
from executor_adapter.worker import position_text, traceback_of_function


def position_in(thread: threading.Thread, coroutine: Coroutine[Any, Any, Any] | None = None) -> str:
    """Return where the function that the thread runs is, in the form of a traceback; empty if it is in C code alone.

    `coroutine`: what the function returned, if it is a coroutine.
    """
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  public, in spite of its name
    return position_text(frame, coroutine)


def with_own_frames(error: BaseException) -> BaseException:
    """Return the error, with the frames that called the function removed from its traceback."""
    set_traceback(error, traceback_of_function(error.__traceback__))
    return error
