"""Arguments that are references to data of an engine: they are sent as such, and loaded on the node."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from executor_adapter.pools.cluster import portable
from executor_adapter.pools.transport.payload import Arguments, Payload, make_payload
from executor_adapter.worker import wire

if TYPE_CHECKING:
    from executor_adapter.job import Job

Replace = Callable[[Any, str], Any]
"""Returns what is sent in place of a reference; the text says which argument it is."""

MAX_KEPT_ON = 10_000
kept_on: dict[Any, str] = {}
"""The nodes of the results that were kept lately, by the names of their references."""


def note_kept(name: Any, node: str) -> None:
    """Take note which node keeps a result."""
    while len(kept_on) >= MAX_KEPT_ON:
        del kept_on[next(iter(kept_on))]
    kept_on[name] = node


def remote_payload(
    job: Job, arguments: Arguments | None = None, near: str | None = None, lent: tuple[Any, ...] = ()
) -> Payload:
    """Encode a job for another machine.

    `arguments`: what is sent in place of its own. `near`: the node that has their data. `lent`: see `Payload`.

    Raises:
        InvalidJobError: the function is a reference to nothing.
        JobSerializationError: function or arguments cannot be pickled.
    """
    portable.forget_reloaded()
    payload = make_payload(job, arguments)
    payload.flags |= wire.KEEP if job.keep else 0
    payload.near, payload.lent = near, lent
    portable.pack(payload.function)
    return payload


def imported_engine(name: str) -> Any:
    """Return the module of an engine; None if the program has not imported it, and so has no reference of it.

    Where another thread is importing it, as the engine's pool does at its first job, this waits until that is done.
    """
    with contextlib.suppress(ImportError):  # Its import failed just now. The pool reports why.
        if name in sys.modules:
            return importlib.import_module(name)
    return None


def replace_references(job: Job, kind: type, replace: Replace) -> Arguments:
    """Return the arguments of a job in which each reference is replaced, also in lists, tuples, sets and dicts.

    `kind`: the class of the engine's references. What holds none of them stays the same object.
    """
    new_args = tuple(_replaced(value, kind, replace, f"argument {n}") for n, value in enumerate(job.args, 1))
    new_kwargs = {name: _replaced(value, kind, replace, f"argument {name!r}") for name, value in job.kwargs.items()}
    return new_args, new_kwargs


def _replaced(value: Any, kind: type, replace: Replace, shown: str) -> Any:
    if isinstance(value, kind):
        return replace(value, shown)
    if type(value) in (list, tuple, set, frozenset):
        parts = [_replaced(part, kind, replace, shown) for part in value]
        is_same = all(new is old for new, old in zip(parts, value, strict=True))
        return value if is_same else type(value)(parts)
    if type(value) is dict:
        entries = {key: _replaced(part, kind, replace, shown) for key, part in value.items()}
        return value if all(entries[key] is value[key] for key in entries) else entries
    return value
