"""What a function raised, looked at without trusting it: an exception's own code may fail, and its chain never end.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from executor_adapter.exceptions import JobError

MOST_IN_CHAIN = 1000
"""Exceptions that are looked at of those which led to one, or which a group holds."""

_CAUSE: Final[Any] = BaseException.__dict__["__cause__"]


def text_of(error: BaseException) -> str:
    """What it says of itself; may be empty. Whatever its `__str__` does, no Exception comes of it."""
    try:
        return str.__str__(str(error))
    except Exception:
        return "(no text: its __str__ fails)"


def shown(error: BaseException) -> str:
    """Its repr; where that fails, its class and what it says."""
    try:
        return str.__str__(repr(error))
    except Exception:
        return f"{type(error).__name__}: {text_of(error)}"


def traceback_text(error: BaseException, tb: TracebackType | None) -> str:
    """`error` as Python prints it, with what led to it unless that has no end; `tb`: where it was raised."""
    try:
        if _chain_ends(error):
            return "".join(traceback.format_exception(type(error), error, tb))
    except Exception:  # it cannot be shown by Python's own means
        pass
    return "".join((*traceback.format_tb(tb), f"{type(error).__name__}: {text_of(error)}\n"))


def is_plain(error: BaseException) -> bool:
    """Whether anybody may show it, in whatever way: neither does its own code fail, nor has its chain no end."""
    try:
        repr(error)
        return _chain_ends(error, _try_to_show)
    except (Exception, SystemExit):
        return False


def _try_to_show(error: BaseException) -> None:
    """Raises what showing it would. Its notes are what most have none of, and some classes then raise anything."""
    str(error), getattr(error, "__notes__", None)


def _chain_ends(error: BaseException, look: Callable[[BaseException], None] = lambda _: None) -> bool:
    seen: set[int] = set()
    ahead = [error]
    while ahead and len(seen) <= MOST_IN_CHAIN:
        one = ahead.pop()
        if id(one) not in seen:
            seen.add(id(one))
            look(one)
            inside = itertools.islice(one.exceptions, MOST_IN_CHAIN) if isinstance(one, BaseExceptionGroup) else ()
            ahead += [found for found in (one.__cause__, one.__context__, *inside) if found is not None]
    return not ahead


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Say that `cause` led to `error`, whatever the class of that makes of its attributes."""
    _CAUSE.__set__(error, cause)


def as_exception(error: BaseException) -> Exception:
    """The error itself where it may be raised anywhere; else a JobError that says what was raised.

    Raised by whoever asks for a result, SystemExit and KeyboardInterrupt would end that program, an asyncio
    CancelledError would pass for a cancellation of its task, and a StopIteration end its loop unseen.
    """
    try:
        # The second looks at its __class__, which may be a property that fails.
        if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
            return error
    except Exception:
        return told_apart(error, f"the function raised {type(error).__name__}")
    if isinstance(error, SystemExit):
        return told_apart(error, f"the function called sys.exit({_exit_code(error)})")
    text = text_of(error)
    return told_apart(error, f"the function raised {type(error).__name__}{': ' if text else ''}{text}")


def _exit_code(error: SystemExit) -> str:
    try:
        return repr(error.code)
    except Exception:
        return "..."


def told_apart(error: BaseException, message: str) -> JobError:
    """A JobError with `message` in place of `error`, whose error code it has."""
    # Here: a worker that never fails needs none of it.
    from executor_adapter.error_codes import error_code_of, retry_after_of

    told = JobError(message, error_code=error_code_of(error), retry_after=retry_after_of(error))
    told.__cause__ = error
    return told


def look_at(error: BaseException) -> None:
    """Do here and now what is done to `error` later, where nothing may take long: its code may never end."""
    from executor_adapter.error_codes import error_code_of, retry_after_of

    text_of(error), shown(error), error_code_of(error), retry_after_of(error)
