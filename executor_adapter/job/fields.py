"""The types of a job's fields that take more than a plain number or text."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from executor_adapter.job.text import size_text
from executor_adapter.job.validation import no_bool

MIN_MEMORY_LIMIT = 8 << 20
"""Bytes. An interpreter that has imported nothing uses more."""
MAX_MEMORY_LIMIT = 1 << 60
"""Bytes. More than any machine has."""

_UNITS = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def _check_function(value: Any) -> Any:
    if callable(value) or (isinstance(value, str) and re.fullmatch(r"[\w.]+:[\w.]+", value)):
        return value
    raise ValueError(f"{value!r} is not callable: pass a function or 'package.module:function'")


def size_in_bytes(value: Any) -> Any:
    """Return the bytes that a text such as "512MiB" means; anything but text as it is.

    Raises:
        ValueError: the text is no size, or more than any machine has.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", value.strip())
    if match is None or match[2] not in _UNITS:
        units = ", ".join(filter(None, _UNITS))
        raise ValueError(f"{value!r} is not a size: pass bytes, or a number with one of the units {units}")
    size = float(match[1]) * _UNITS[match[2]]
    if size > MAX_MEMORY_LIMIT:
        raise ValueError(f"{value[:20]!r} is more memory than any machine has: leave the limit out")
    return int(size)


def _check_memory_limit(value: Any) -> Any:
    return _check_holds_python(size_in_bytes(value)) if isinstance(value, str) else no_bool(value)


def _check_holds_python(size: int) -> int:
    if size < MIN_MEMORY_LIMIT:
        least = size_text(MIN_MEMORY_LIMIT)
        raise ValueError(
            f"{size_text(size)} is too little for a Python process: pass at least {least}, or a unit too ('512MiB')"
        )
    return size


FunctionField = Annotated[Any, BeforeValidator(_check_function)]
"""A callable, or its reference `package.module:function`."""

MemoryLimit = Annotated[
    Annotated[int, AfterValidator(_check_holds_python)] | None,
    BeforeValidator(_check_memory_limit),
]
"""Bytes, or text such as "512MiB"; None for no limit."""
