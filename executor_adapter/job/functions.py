"""The function of a job: found by its reference, classified, and checked against its arguments."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.exceptions.display import text_of


def function_reference(function: Callable[..., Any] | str) -> str:
    """Return `module:qualname` of a function; for a partial, a bound method or an object, as near as possible.

    A reference is returned as it is.
    """
    if isinstance(function, str):
        return function
    inner = function.func if isinstance(function, functools.partial) else function
    qualname = getattr(inner, "__qualname__", type(inner).__qualname__)
    return f"{getattr(inner, '__module__', None) or type(inner).__module__}:{qualname}"


def resolve(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return the function that the reference `module:qualname` names; a function is returned as it is.

    Raises:
        InvalidJobError: the module does not exist, its import fails, or it has nothing callable of that name.
    """
    if not isinstance(function, str):
        return function
    module, _, qualname = function.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in qualname.split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:  # The module's own code runs and may raise anything.
        is_missing = isinstance(error, ImportError | AttributeError)
        why = text_of(error) if is_missing else f"{type(error).__name__}: {text_of(error)}"
        raise InvalidJobError(f"function={function!r} cannot be imported: {why}") from error
    if not callable(found):
        raise InvalidJobError(f"function={function!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def is_coroutine_function(function: Callable[..., Any] | str) -> bool:
    """Return whether calling `function` returns a coroutine."""
    if type(function) is types.FunctionType:  # The common case, ten times as fast.
        return bool(function.__code__.co_flags & inspect.CO_COROUTINE)
    found = resolve(function)
    while isinstance(found, functools.partial):
        found = found.func
    return inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(type(found).__call__)


def is_generator_function(function: Callable[..., Any] | str) -> bool:
    """Return whether calling `function` returns a generator, sync or async, which would run nothing of its body."""
    if type(function) is types.FunctionType:
        return bool(function.__code__.co_flags & _GENERATORS)
    found: Any = resolve(function)
    while isinstance(found, functools.partial):
        found = found.func
    # An object has the code of its class's `__call__`, and a bound method that of its function.
    code = getattr(type(found).__call__, "__code__", None) or getattr(found, "__code__", None)
    return code is not None and bool(code.co_flags & _GENERATORS)


_GENERATORS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def check_arguments(function: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Check that a plain function can be called with these arguments; other callables are not checked.

    Raises:
        InvalidJobError: it cannot be called with them.
    """
    if type(function) is not types.FunctionType or _fits(function, args, kwargs):
        return
    bare = types.FunctionType(  # Has the function's real parameters, not those that a decorator shows.
        function.__code__, {}, function.__name__, function.__defaults__, function.__closure__
    )
    bare.__kwdefaults__ = function.__kwdefaults__
    try:
        inspect.signature(bare).bind(*args, **kwargs)
    except TypeError as error:
        called = function_reference(function)
        raise InvalidJobError(f"{called} cannot be called with the args and kwargs of the job: {error}") from None


def _fits(function: types.FunctionType, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the call fits. Every job is checked, and `inspect` would take ten times as long."""
    code = function.__code__
    given, positional, named = len(args), code.co_argcount, code.co_kwonlyargcount
    if given == positional and not named and not kwargs:
        return True
    if given > positional:
        if not code.co_flags & inspect.CO_VARARGS:
            return False
        given = positional
    names = code.co_varnames[: positional + named]
    if kwargs and not code.co_flags & inspect.CO_VARKEYWORDS:
        open_names = names[max(given, code.co_posonlyargcount) :]
        if not all(name in open_names for name in kwargs):
            return False
    required = names[given : positional - len(function.__defaults__ or ())]
    optional = function.__kwdefaults__ or ()
    required_by_name = (name for name in names[positional:] if name not in optional)
    return all(name in kwargs for name in (*required, *required_by_name))


def function_key(function: object) -> object:
    """Return a hashable key for a function that keeps nothing alive, for statistics by function."""
    if isinstance(function, str):
        return function
    return weakref.ref(function if isinstance(function, _PLAIN_FUNCTIONS) else type(function))


_PLAIN_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
