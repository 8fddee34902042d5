"""The facts of an error: what is known of it without its class, and without running its code.

`str`, `repr`, the error code and `retry_after` of an exception run code of its class, which may be slow, may raise, and
may be missing in another process. So the facts are read once, where the function ran (`worker.facts`), and travel
beside the exception. Retries, records, states and logs know an error by its facts alone.

Every worker imports this module, so it uses the standard library alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard, TypeVar

E = TypeVar("E", bound=BaseException)

_NAME = "__executor_adapter_facts__"
_attributes: Any = BaseException.__dict__["__dict__"].__get__
"""Returns the attributes of an exception, whatever its class does when one is read."""


class ErrorFacts(NamedTuple):
    """Holds what is known of an error, as plain data."""

    code: str
    """The error code, which decides whether it is retried."""
    kinds: tuple[str, ...]
    """The names of its class and of the bases of that, "builtins.ConnectionError", the class first."""
    text: str
    """Its class and its text, or the text alone where that is a whole sentence of this package."""
    traceback: str | None = None
    """Where the function failed, where it was at a time limit, or the end of a crash's output."""
    retry_after: float | None = None
    """Seconds that the remote side asked to wait."""
    ends: str | None = None
    """The id of the job that its executor has ended with this error, if it has."""
    shutdown: bool = False
    """Whether the executor ended the job because it was shut down or another host may run the job."""

    def is_a(self, kind: type[BaseException]) -> bool:
        """Return whether the error is of this class."""
        return f"{kind.__module__}.{kind.__qualname__}" in self.kinds


def kinds_of(error: BaseException) -> tuple[str, ...]:
    """Return the names of the exception's class and of its bases."""
    return tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__[:-1])


def kept_facts(error: BaseException) -> ErrorFacts | None:
    """Return the facts that were read of the exception; None if nothing was."""
    found: tuple[Any, ...] | None = _attributes(error).get(_NAME)
    return None if found is None else ErrorFacts(*found)


def keep_facts(error: BaseException, facts: ErrorFacts | None) -> None:
    """Keep what was read of the exception, whatever its class does when an attribute is set.

    A plain tuple is kept, so that the exception can be unpickled anywhere.
    """
    object.__setattr__(error, _NAME, None if facts is None else tuple(facts))


def is_a(error: object, kind: type[E]) -> TypeGuard[E]:
    """Return whether the exception is of this kind; unlike isinstance, it does not read a `__class__` of its own."""
    return issubclass(type(error), kind)
