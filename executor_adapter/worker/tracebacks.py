"""The end of a traceback as text, for stores and logs; it runs no code of the exception's class, which may hang.

Every worker may import this module, so it needs the standard library alone.
"""

from __future__ import annotations

import concurrent.futures
import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from executor_adapter.error_facts import facts_of, is_a
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError, WorkerCrashedError
from executor_adapter.worker import wire

MAX_TRACEBACK = 8_000
"""Characters that are kept; what is cut off are the outer calls."""

_INTERNAL = (
    str(Path(__file__).parents[1]) + os.sep,
    str(Path(concurrent.futures.__file__).parent) + os.sep,
)
"""Folders with the code through which an error comes; its frames are shown only where there are no others."""
_PLAIN = (str, int, float, bool, bytes, type(None))


def traceback_of(error: BaseException, tb: TracebackType | None) -> str | None:
    """Return where a job failed: its traceback, where it was at a time limit, or the end of a crash's output.

    `tb` is the error's traceback as the job ended; who asks for the job's result adds frames to the error's own. A text
    that is too long loses its beginning. Returns None where nothing is known.
    """
    text = _text(error, tb).strip()
    left_out = len(text) - MAX_TRACEBACK
    return (text if left_out <= 0 else f"... ({left_out:,} characters)\n{text[left_out:]}") or None


def _text(error: BaseException, tb: TracebackType | None) -> str:
    if is_a(error, WorkerCrashedError):
        tail = error.output_tail.strip()
        return f"The end of its output:\n{tail}" if tail else ""
    cause = error.__cause__
    if cause is not None and is_a(cause, wire.RemoteTraceback):
        return cause.text
    return "" if is_a(error, JobTimeoutError) or is_a(error, JobCancelledError) else "\n".join(_parts(error, tb))


def _parts(error: BaseException, tb: TracebackType | None) -> Iterator[str]:
    """Yield the traceback of the error, after that of the error that it was raised from."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield _one(before, before.__traceback__)
        yield "The error above led to this one:\n"
    yield _one(error, tb)


def _one(error: BaseException, tb: TracebackType | None) -> str:
    entries = traceback.extract_tb(tb)
    own = [entry for entry in entries if not entry.filename.startswith(_INTERNAL)]
    frames = "".join(traceback.format_list(own or entries))
    return ("Traceback (most recent call last):\n" + frames if frames else "") + _last_line(error)


def _last_line(error: BaseException) -> str:
    name = type(error).__name__
    if (facts := facts_of(error)) is not None:
        return f"{name}: {facts[0]}\n" if facts[0] else f"{name}\n"
    runs_no_code = type(error).__module__ == "builtins" and all(type(part) in _PLAIN for part in error.args)
    return f"{name}: {error}\n" if runs_no_code else f"{name}\n"
