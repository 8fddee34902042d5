"""Displays exceptions that cannot be trusted: their own code may fail, and their chain of causes may be endless.

Every worker imports this module, so it uses the standard library alone.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from executor_adapter.error_facts import is_a, kept_facts
from executor_adapter.exceptions import InvalidJobError, JobError

MAX_CHAIN_LENGTH = 1000
"""Causes and members of groups that are followed before the chain counts as endless."""

_CAUSE: Final[Any] = BaseException.__dict__["__cause__"]
_TRACEBACK: Final[Any] = BaseException.__dict__["__traceback__"]


def text_of(error: BaseException) -> str:
    """Return its message, which may be empty. Never raises an Exception, whatever its `__str__` does."""
    try:
        return str.__str__(str(error))
    except Exception:
        return "(no text: its __str__ fails)"


def repr_of(error: BaseException) -> str:
    """Return its repr, or its class and message where the repr fails or does not name the class."""
    name = type(error).__name__
    try:
        shown = str.__str__(repr(error))
    except Exception:
        shown = ""
    return shown if name in shown else f"{name}: {text_of(error)}"


def message_of(error: BaseException) -> str:
    """Return what a job shows of its error: its class and text, or of one of ours the text, a whole sentence.

    A class that users derive from ours is named: only the error codes of our own classes say what they are.
    """
    if (facts := kept_facts(error)) is not None:
        return facts.text
    text, name = text_of(error), type(error).__name__
    if issubclass(type(error), JobError | InvalidJobError) and type(error).__module__ == JobError.__module__:
        return text or name
    return f"{name}: {text}" if text else name


def traceback_text(error: BaseException, tb: TracebackType | None) -> str:
    """Return the traceback as Python prints it, with the causes unless their chain is endless.

    Args:
        error: the exception.
        tb: where it was raised.
    """
    try:
        if _chain_ends(error):
            return "".join(traceback.format_exception(type(error), error, tb))
    except Exception:  # The exception's own code fails.
        pass
    return "".join((*traceback.format_tb(tb), f"{type(error).__name__}: {text_of(error)}\n"))


def is_plain(error: BaseException) -> bool:
    """Return whether any code may display it: its own code does not fail, and its chain of causes ends."""
    try:
        repr(error)
        return _chain_ends(error, _try_to_display)
    except (Exception, SystemExit):
        return False


def _try_to_display(error: BaseException) -> None:
    """Raise what displaying it would, also by a class whose `__getattr__` fails for the notes that it does not have."""
    str(error), getattr(error, "__notes__", None)


def _chain_ends(error: BaseException, visit: Callable[[BaseException], None] = lambda _: None) -> bool:
    """Return whether the chain of causes ends, after calling `visit` for each exception in it."""
    seen: set[int] = set()
    ahead = [error]
    while ahead and len(seen) <= MAX_CHAIN_LENGTH:
        one = ahead.pop()
        if id(one) not in seen:
            seen.add(id(one))
            visit(one)
            inside = itertools.islice(one.exceptions, MAX_CHAIN_LENGTH) if isinstance(one, BaseExceptionGroup) else ()
            ahead += [found for found in (one.__cause__, one.__context__, *inside) if found is not None]
    return not ahead


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Set the `__cause__` of `error`, even where its class overrides how attributes are set."""
    _CAUSE.__set__(error, cause)


def set_traceback(error: BaseException, tb: TracebackType | None) -> None:
    """Set the `__traceback__` of `error`, even where its class overrides how attributes are set."""
    _TRACEBACK.__set__(error, tb)


def as_exception(error: BaseException) -> Exception:
    """Return the error itself where any caller may raise it; otherwise a JobError that names what was raised.

    In a caller that asks for a job's result, SystemExit and KeyboardInterrupt would end the program, an asyncio
    CancelledError would look like a cancellation of the caller's task, and a StopIteration would end its loop.
    """
    if is_a(error, Exception) and not (is_a(error, StopIteration) or is_a(error, StopAsyncIteration)):
        return error
    if is_a(error, SystemExit):
        return as_job_error(error, f"the function called sys.exit({_exit_code(error)})")
    text = text_of(error)
    return as_job_error(error, f"the function raised {type(error).__name__}{': ' if text else ''}{text}")


def _exit_code(error: SystemExit) -> str:
    try:
        return repr(error.code)
    except Exception:
        return "..."


def as_job_error(error: BaseException, message: str) -> JobError:
    """Return a JobError with this message and the error code of `error`, which is its cause."""
    # Imported here, because a worker whose jobs never fail does not need it.
    from executor_adapter.error_codes import error_code_of, retry_after_of

    job_error = JobError(message, error_code=error_code_of(error), retry_after=retry_after_of(error))
    job_error.__cause__ = error
    return job_error
