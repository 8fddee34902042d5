"""Shows the stack of a thread that cannot be stopped, for the log."""

from __future__ import annotations

import sys
import threading
import traceback


def stack_of(thread: threading.Thread) -> str:
    """Return the stack of a running thread as text."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  public, in spite of its name
    return "".join(traceback.format_stack(frame)) if frame is not None else "(the thread has ended)"
