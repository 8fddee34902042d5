"""A job's function: found by its reference, and told apart."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
from collections.abc import Callable
from typing import Any

from executor_adapter.exceptions import InvalidJobError


def resolve(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """The function that a reference `module:qualname` names; a function itself is given back.

    Raises:
        InvalidJobError: there is no such module, or nothing callable of that name in it.
    """
    if not isinstance(function, str):
        return function
    module, _, qualname = function.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in qualname.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError) as error:
        raise InvalidJobError(f"function={function!r} cannot be imported: {error}") from error
    if not callable(found):
        raise InvalidJobError(f"function={function!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def is_coroutine_function(function: Callable[..., Any] | str) -> bool:
    """Whether a call of `function` gives a coroutine."""
    if type(function) is types.FunctionType:  # the common case, and ten times as fast
        return bool(function.__code__.co_flags & inspect.CO_COROUTINE)
    found = resolve(function)
    while isinstance(found, functools.partial):
        found = found.func
    call = getattr(type(found), "__call__", None)  # noqa: B004 - of an object: whether calling it gives a coroutine
    return inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(call)


def function_key(function: object) -> object:
    """What the run times of a function are remembered under: it must be hashable, and not keep an object alive."""
    return function if isinstance(function, _KEPT) else type(function)


_KEPT = (types.FunctionType, str, types.BuiltinFunctionType)
