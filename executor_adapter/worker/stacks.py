"""Shows where a function is, or where it failed, without the frames of this package that called it.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import linecache
import os
import re
import traceback
from collections.abc import Coroutine, Iterator
from types import FrameType, TracebackType
from typing import Any

from executor_adapter.worker.wire import RemoteTraceback

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_CALLERS = frozenset(
    os.path.join(_PACKAGE, *path)
    for path in (
        ("worker", "call.py"),
        ("pools", "in_process", "call.py"),
        ("pools", "in_process", "coroutine.py"),
        ("pools", "in_process", "thread.py"),
    )
)
"""The files whose code calls a job's function."""
_SIGNAL_HANDLERS = os.path.join(_PACKAGE, "worker", "process.py")
"""The file whose signal handlers raise in a function."""


_FRAME = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+), in .*\n(?!    )', re.MULTILINE)
"""The line of a traceback that names a frame, where no line of source follows."""


class FunctionPosition(RemoteTraceback):
    """Shows where a function was, as the `__cause__` of the exception that ended it.

    The lines of source are read when it is shown: a worker that is being ended has no time for that.
    """

    @property
    def text(self) -> str:
        """The position, in the form of a traceback."""
        return "The function was here:\n" + _FRAME.sub(_with_source, super().text)


def _with_source(frame: re.Match[str]) -> str:
    source = linecache.getline(frame["file"], int(frame["line"])).strip()
    return f"{frame[0]}    {source}\n" if source else frame[0]


def position_text(
    frame: FrameType | None, coroutine: Coroutine[Any, Any, Any] | None = None, *, source: bool = True
) -> str:
    """Return where a function is, in the form of a traceback; empty if it cannot be seen.

    `frame` is the innermost frame of its thread. `coroutine` is what the function returned, if it is a coroutine: where
    it waits, its event loop is all that the thread shows. Without `source`, no files are read for the lines of source.
    """
    waiting = coroutine is not None and not getattr(coroutine, "cr_running", True)
    frames = list(_frames_of(coroutine)) if waiting else list(traceback.walk_stack(frame))[::-1] if frame else []
    own = [index for index, (each, _) in enumerate(frames) if each.f_code.co_filename in _CALLERS]
    shown = frames[own[-1] + 1 if own else 0 :]
    if source:
        return "".join(traceback.StackSummary.extract(iter(shown)).format())
    named = [(each.f_code.co_filename, line, each.f_code.co_name) for each, line in shown]
    return "".join(f'  File "{file}", line {line}, in {name}\n' for file, line, name in named)


def _frames_of(awaited: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames of a suspended coroutine and of those that it awaits, the innermost last."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None)
        if frame is None:
            return
        yield frame, frame.f_lineno
        awaited = awaited.cr_await


def traceback_of_function(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames that called the function, and without a signal handler that raised in it.

    The traceback itself is changed. It is returned whole if nothing of the function is in it.
    """
    first = tb
    while first is not None and first.tb_frame.f_code.co_filename in _CALLERS:
        first = first.tb_next
    last = first
    while last is not None:
        following = last.tb_next
        if following is not None and following.tb_frame.f_code.co_filename == _SIGNAL_HANDLERS:
            last.tb_next = None
        last = last.tb_next
    return first or tb
