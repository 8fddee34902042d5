"""How functions and arguments are written for another process: by reference where it will find them, else by value.

Plain pickle goes first, since it is fast. Its result is used where it names no module that a child would not find;
else cloudpickle writes what is in such modules by value: functions with the globals they use, classes, closures.

The encoding of a function is remembered. That of a function by value only while all it refers to is unchangeable and
unchanged, for a child must see the globals as they are when the job is submitted.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import pickle
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from executor_adapter.exceptions import JobSerializationError
from executor_adapter.exceptions.display import text_of
from executor_adapter.pools.transport import importable
from executor_adapter.worker.call import PICKLE, REFERENCE
from executor_adapter.worker.values import STACK_GLOBAL, Buffers

MOST_REMEMBERED = 4096

_UNCHANGEABLE = (int, float, complex, str, bytes, bool, type(None), types.ModuleType, types.BuiltinFunctionType)
_by_value_lock = threading.RLock()


class EncodedFunction:
    """A function as a worker reads it. `number` is its own in this process; `once`: it is for one call alone."""

    __slots__ = ("encoded", "number", "once")

    numbers = itertools.count(1)

    def __init__(self, encoded: bytes, *, once: bool) -> None:
        self.encoded = encoded
        self.once = once
        self.number = next(self.numbers) & 0xFFFFFFFF


_remembered: dict[int, tuple[weakref.ref[Any], EncodedFunction, Any]] = {}


def encode_function(function: Callable[..., Any]) -> EncodedFunction:
    """Write a function for workers.

    Raises:
        JobSerializationError: it cannot be pickled.
    """
    known = _remembered.get(id(function))
    if known is not None and known[0]() is function:
        if known[2] is None or known[2] == _ingredients(function):
            return known[1]
        _remembered.pop(id(function), None)
    referred = importable.reference(function)
    if referred is not None:
        return _remember(function, EncodedFunction(REFERENCE + referred.encode(), once=False), None)
    ingredients = _ingredients(function)
    encoded = EncodedFunction(PICKLE + _pickle_function(function), once=ingredients is None)
    return encoded if ingredients is None else _remember(function, encoded, ingredients)


def _pickle_function(function: Callable[..., Any]) -> bytes:
    try:
        return dumps(function)
    except Exception as error:
        raise JobSerializationError(
            f"function {function!r} cannot be pickled: {text_of(error)}: use a function of a module, "
            "or leave out what it captures, or run it with pool='thread'"
        ) from error


def _remember(function: Any, encoded: EncodedFunction, ingredients: Any) -> EncodedFunction:
    key = id(function)
    try:
        gone = weakref.ref(function, lambda _: _remembered.pop(key, None))
    except TypeError:  # a builtin
        return encoded
    if len(_remembered) >= MOST_REMEMBERED:
        _remembered.clear()
    _remembered[key] = (gone, encoded, ingredients)
    return encoded


def _ingredients(function: Any) -> tuple[Any, ...] | None:
    """All that the encoding of a function by value depends on; None where some of it may change unseen."""
    try:
        return tuple(_walk(function, set()))
    except _Changeable:
        return None


class _Changeable(Exception):
    pass


def _walk(thing: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(thing, _UNCHANGEABLE):
        yield type(thing)  # 1 == 1.0 == True
        yield id(thing) if isinstance(thing, types.ModuleType) else thing
    elif type(thing) is tuple:
        for part in thing:
            yield from _walk(part, seen)
    elif id(thing) in seen or importable.reference(thing) is not None:
        yield id(thing)
    elif isinstance(thing, types.FunctionType) and not thing.__dict__:
        seen.add(id(thing))
        yield thing.__code__
        for part in _parts(thing):
            yield from _walk(part, seen)
    else:
        raise _Changeable


def _parts(function: types.FunctionType) -> Iterator[Any]:
    yield function.__defaults__
    yield from (function.__kwdefaults__ or {}).items()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            raise _Changeable from None
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            yield name
            yield function.__globals__[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def dumps(value: Any, buffers: Buffers | None = None) -> bytes:
    """Pickle `value` so that a child can load it, whatever modules it comes from."""
    try:
        stream = pickle.dumps(value, 5, buffer_callback=buffers)
    except Exception:
        return _dumps_by_value(value, buffers)
    if STACK_GLOBAL not in stream or not any(name in stream for name in importable.hidden_names()):
        return stream
    return _dumps_by_value(value, buffers)


def _dumps_by_value(value: Any, buffers: Buffers | None) -> bytes:
    if buffers is not None:
        buffers.clear()
    with io.BytesIO() as file, _ByValuePickler(file, protocol=5, buffer_callback=buffers) as pickler:
        pickler.dump(value)
        return file.getvalue()


class _ByValuePickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Writes functions and classes of modules that a child would not find by value."""

    def __enter__(self) -> _ByValuePickler:
        # cloudpickle keeps the modules to be written by value for the whole process.
        _by_value_lock.acquire()
        self._registered: list[types.ModuleType] = []
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._registered:
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)
        _by_value_lock.release()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type | types.FunctionType):
            module = sys.modules.get(obj.__module__)
            if module is not None and module.__name__ != "__main__" and not importable.is_found(module):
                self._register(module)
        return super().reducer_override(obj)

    def _register(self, module: types.ModuleType) -> None:
        if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._registered.append(module)
