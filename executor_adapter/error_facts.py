"""What is known of an exception without running its code again.

`str`, `repr`, the error code and `retry_after` of an exception run code of its class, which may be slow whenever it is
called. So `display.read_once` calls it on the thread of the function that raised it, and keeps the answers on the
exception; everybody else reads those.

Every worker imports this module, so it uses the standard library alone.
"""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar

E = TypeVar("E", bound=BaseException)

ErrorFacts = tuple[str, str, str, float | None]
"""Text, repr, error code and retry_after. A plain tuple, so that the exception can be unpickled anywhere."""

_NAME = "__executor_adapter_facts__"
_attributes: Any = BaseException.__dict__["__dict__"].__get__
"""Returns the attributes of an exception, whatever its class does when one is read."""


def facts_of(error: BaseException) -> ErrorFacts | None:
    """Return what was read of the exception; None if nothing was."""
    found: ErrorFacts | None = _attributes(error).get(_NAME)
    return found


def keep_facts(error: BaseException, facts: ErrorFacts | None) -> None:
    """Keep what was read of the exception, whatever its class does when an attribute is set."""
    object.__setattr__(error, _NAME, facts)


def is_a(error: object, kind: type[E]) -> TypeGuard[E]:
    """Return whether the exception is of this kind; unlike isinstance, it does not read a `__class__` of its own."""
    return issubclass(type(error), kind)
