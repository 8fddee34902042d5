"""Encodes functions and arguments for another process: by reference if it can import them, else by value.

Plain pickle is tried first, since it is fast. Its result is used unless it names a module that a child process cannot
import. Then cloudpickle writes what is in such modules by value: functions with their globals, classes, closures.

The encoding of a function is cached. A function encoded by value is cached only while everything it refers to is
immutable and unchanged, since a child process must see the globals as they are when the job is submitted.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import pickle
import pkgutil
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from executor_adapter.exceptions import JobSerializationError
from executor_adapter.exceptions.display import text_of
from executor_adapter.job import resolve
from executor_adapter.pools.transport import importable
from executor_adapter.worker import values
from executor_adapter.worker.call import PICKLE, REFERENCE

MAX_CACHED = 4096
"""Functions whose encoding is cached. When there are so many, the cache is emptied."""

_IMMUTABLE = (int, float, complex, str, bytes, bool, type(None), types.ModuleType)
_by_value_lock = threading.RLock()


class EncodedFunction:
    """A function as a worker decodes it.

    `number`: identifies it in this process. `once`: it is for one call only, so the worker does not keep it.
    """

    __slots__ = ("encoded", "number", "once", "sources")

    numbers = itertools.count(1)

    def __init__(self, encoded: bytes, *, once: bool) -> None:
        self.encoded = encoded
        self.once = once
        self.sources: tuple[Any, ...] | None = None
        """The modules of the program that it reaches, for nodes that may lack them; None if they are not known yet."""
        self.number = next(self.numbers) & 0xFFFFFFFF


_cache: dict[int, tuple[weakref.ref[Any], EncodedFunction, Any]] = {}


def encode_function(function: Callable[..., Any] | str) -> EncodedFunction:
    """Encode a function for workers.

    Raises:
        InvalidJobError: it is a reference to nothing.
        JobSerializationError: it cannot be pickled.
    """
    if isinstance(function, str):
        if function.startswith("__main__:"):  # A worker has another main module.
            return encode_function(resolve(function))
        return _encode_reference(function)
    known = _cache.get(id(function))
    if known is not None and known[0]() is function and (known[2] is None or known[2] == _dependencies(function)):
        return known[1]
    referred = importable.importable_reference(function)
    if referred is not None:
        return _add_to_cache(function, EncodedFunction(REFERENCE + referred.encode(), once=False), None)
    dependencies = _dependencies(function)
    try:
        encoded = EncodedFunction(PICKLE + dump_by_value(function), once=dependencies is None)
    except Exception as error:
        raise JobSerializationError(
            f"function {function!r} cannot be pickled: {text_of(error)}: use a function of a module, "
            "or leave out what it captures, or run it with pool='thread'"
        ) from error
    return encoded if dependencies is None else _add_to_cache(function, encoded, dependencies)


@functools.lru_cache(maxsize=MAX_CACHED)
def _encode_reference(function: str) -> EncodedFunction:
    resolve(function)
    return EncodedFunction(REFERENCE + function.encode(), once=False)


def forget_functions() -> None:
    """Encode every function anew when it is needed again."""
    _cache.clear()
    _encode_reference.cache_clear()


def _add_to_cache(function: Any, encoded: EncodedFunction, dependencies: Any) -> EncodedFunction:
    key = id(function)
    try:
        ref = weakref.ref(function, lambda _: _cache.pop(key, None))
    except TypeError:  # Builtins have no weak references.
        return encoded
    if len(_cache) >= MAX_CACHED:
        _cache.clear()
    _cache[key] = (ref, encoded, dependencies)
    return encoded


def _dependencies(function: Any) -> tuple[Any, ...] | None:
    """Return everything that a function's encoding by value depends on; None if some of it may change unnoticed."""
    try:
        return tuple(_walk(function, set()))
    except _MutableError:
        return None


class _MutableError(Exception):
    """A function refers to something that may change without being replaced."""


def _walk(value: Any, seen: set[int]) -> Iterator[Any]:
    if isinstance(value, _IMMUTABLE):
        yield type(value)  # Compared by type too, since 1 == 1.0 == True.
        yield id(value) if isinstance(value, types.ModuleType) else value
    elif type(value) is tuple:
        for part in value:
            yield from _walk(part, seen)
    elif id(value) in seen or importable.importable_reference(value) is not None:
        yield id(value)
    elif isinstance(value, types.FunctionType) and not value.__dict__:
        seen.add(id(value))
        yield value.__code__
        for part in _parts(value):
            yield from _walk(part, seen)
    else:
        raise _MutableError


def _parts(function: types.FunctionType) -> Iterator[Any]:
    yield function.__defaults__
    yield from (function.__kwdefaults__ or {}).items()
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # The variable is not assigned yet.
            raise _MutableError from None
    for name in sorted(set(_names(function.__code__))):
        if name in function.__globals__:
            yield name
            yield function.__globals__[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def dump_by_value(value: Any, buffers: values.LargeBuffers | None = None) -> bytes:
    """Pickle `value` so that a child process can load it, from whichever module it comes."""
    try:
        stream = pickle.dumps(value, 5, buffer_callback=buffers)
    except Exception:
        return _dumps_by_value(value, buffers)
    if values.STACK_GLOBAL not in stream or not any(name in stream for name in importable.names_not_importable()):
        return stream
    return _dumps_by_value(value, buffers)


def _dumps_by_value(value: Any, buffers: values.LargeBuffers | None) -> bytes:
    if buffers is not None:
        buffers.clear()
    with io.BytesIO() as file, _ByValuePickler(file, protocol=5, buffer_callback=buffers) as pickler:
        pickler.dump(value)
        return file.getvalue()


class _ByValuePickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Writes functions and classes by value if they are in modules that a child process cannot import."""

    def __enter__(self) -> _ByValuePickler:
        # cloudpickle keeps the list of modules to be written by value for the whole process.
        _by_value_lock.acquire()
        self._registered: list[types.ModuleType] = []
        return self

    def __exit__(self, *_: object) -> None:
        for module in self._registered:
            with contextlib.suppress(ValueError):
                cloudpickle.unregister_pickle_by_value(module)
        _by_value_lock.release()

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType):
            return _with_file_name(obj, self.dispatch_table[types.CodeType](obj))
        if isinstance(obj, types.MethodType | types.BuiltinMethodType):
            return _as_attribute(obj) or super().reducer_override(obj)
        if isinstance(obj, type | types.FunctionType):
            module = sys.modules.get(obj.__module__)
            if module is not None and module.__name__ != "__main__" and not importable.is_importable(module):
                self._register(module)
        return super().reducer_override(obj)

    def _register(self, module: types.ModuleType) -> None:
        if module.__name__ not in cloudpickle.list_registry_pickle_by_value():
            cloudpickle.register_pickle_by_value(module)
            self._registered.append(module)


def _as_attribute(method: Any) -> tuple[Any, ...] | None:
    """Return how a method is reduced that a module holds, without the object that it belongs to; None for others."""
    reference = importable.importable_reference(method)
    return None if reference is None else (pkgutil.resolve_name, (reference,))


def _with_file_name(code: types.CodeType, reduced: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return how cloudpickle reduces `code`, with its file, which a traceback shows, in place of "<dynamic-code>"."""
    make, args, *rest = reduced
    file = code.co_filename if code.co_filename.startswith("<") else os.path.abspath(code.co_filename)
    return make, tuple(file if arg == "<dynamic-code>" else arg for arg in args), *rest
