"""What users may give: numbers, sizes, functions, limits. Else it is refused before any work starts, with the fix."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from numbers import Integral, Real
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from executor_adapter.job.functions import function_reference
from executor_adapter.job.pool_names import PoolWithSlots


def no_bool(value: Any) -> Any:
    """Return the value, but refuse True and False, which Python takes for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    return value


def seconds_only(value: Any) -> Any:
    """Return the value, but refuse bools, and durations as text or timedelta: the message gives their seconds."""
    if type(value) is float or type(value) is int:
        return value
    seconds = value.total_seconds() if isinstance(value, timedelta) else seconds_in(value)
    if seconds is not None:
        message = "must be a number of seconds: give {seconds}"
        raise PydanticCustomError("seconds", message, {"seconds": f"{seconds:.10g}"})
    return no_bool(value)


def seconds_in(value: Any) -> float | None:
    """Return the seconds of a text such as "5m", "2 hours" or "7d"; None where it is anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", value) if isinstance(value, str) else None
    if match is None:
        return None
    unit = match[2].lower()
    factor = _UNITS_OF_TIME.get(unit) or _UNITS_OF_TIME.get(unit.removesuffix("s"))
    return None if factor is None else float(match[1]) * factor


_UNITS_OF_TIME = {"ms": 0.001, "s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60} | {
    "h": 3600, "hour": 3600, "d": 86400, "day": 86400, "w": 604_800, "week": 604_800
}  # fmt: skip


# The bounds are inside, so that pydantic's core checks them: outside they would cost a call of a function each.
Number = Annotated[float, BeforeValidator(no_bool), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(no_bool)]
Seconds = Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)], BeforeValidator(seconds_only)]
Delay = Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)], BeforeValidator(seconds_only)]
Factor = Annotated[Annotated[float, Field(ge=1, allow_inf_nan=False)], BeforeValidator(no_bool)]
Retries = Annotated[Annotated[int, Field(ge=0)], BeforeValidator(no_bool)]


def check_count(name: str, value: Any, too_few: str, *, or_none: str = "") -> None:
    """Check that `value` is a whole number of at least 1; `too_few` describes the effect of a smaller one.

    With `or_none`, what the message says about it, None is right too.

    Raises:
        ValueError: it is not; the message starts with `name`.
    """
    if or_none and value is None:
        return
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole:
        raise ValueError(f"{name}={value!r} is not a whole number: use 1 or more{or_none}")
    if value < 1:
        raise ValueError(f"{name}={value} {too_few}: use at least 1{or_none}")


def check_max_workers(value: Any, *, or_none: str = "") -> None:
    """Check that `value` is a number of slots, or a mapping from names of pools to such numbers.

    Raises:
        ValueError: it is not; the message names the value and what is right.
    """
    if not isinstance(value, Mapping):
        check_count("max_workers", value, "leaves no worker", or_none=or_none)
        return
    for name, number in value.items():
        if name not in (known := get_args(PoolWithSlots)):
            raise ValueError(f"max_workers: {name!r} is not a pool: use {', '.join(known)}")
        check_count(f"max_workers[{name!r}]", number, "leaves no worker")


def check_timeout(name: str, value: Any) -> None:
    """Check that `value` is a number of seconds, or None.

    Raises:
        ValueError: it is not; the message starts with `name`.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or math.isnan(value)):
        raise ValueError(f"{name}={value!r} is not a number of seconds: give one, or None for no limit")


def check_age(name: str, value: Any) -> None:
    """Check that `value` is a finite number of at least 0.

    Raises:
        ValueError: it is not; the message starts with `name`.
    """
    if not _is_finite(value) or value < 0:
        raise ValueError(f"{name}={value!r} is not an age: use 0 (all finished jobs) or more")


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)


def storable(text: str) -> str:
    """Replace what no database accepts in `text`.

    That is the character 0, and unpaired surrogates, which occur in names of files that are not encoded in UTF-8
    (`os.fsdecode`).
    """
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def size_text(size: int) -> str:
    """Return a number of bytes as people write it: 200 MiB, 1.5 GiB, 512 bytes."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if abs(size) >= 1 << power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size:,} bytes"


MIN_MEMORY_LIMIT = 8 << 20
"""Bytes. An interpreter that has imported nothing uses more."""
MAX_MEMORY_LIMIT = 1 << 60
"""Bytes. More than any machine has."""

_UNITS_OF_MEMORY = {"": 1, "B": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("KMGT", 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


_REFERENCE = re.compile(r"[\w.]+:[\w.]+")


def _check_function(value: Any) -> Any:
    if callable(value) or (isinstance(value, str) and _REFERENCE.fullmatch(value)):
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
    if match is None or match[2] not in _UNITS_OF_MEMORY:
        units = ", ".join(filter(None, _UNITS_OF_MEMORY))
        raise ValueError(f"{value!r} is not a size: pass bytes, or a number with one of the units {units}")
    size = float(match[1]) * _UNITS_OF_MEMORY[match[2]]
    if size > MAX_MEMORY_LIMIT:
        raise ValueError(f"{value[:20]!r} is more memory than any machine has: leave the limit out")
    return int(size)


def _check_memory(value: Any) -> Any:
    return _check_holds_python(size_in_bytes(value)) if isinstance(value, str) else no_bool(value)


def _check_holds_python(size: int) -> int:
    if size < MIN_MEMORY_LIMIT:
        least = size_text(MIN_MEMORY_LIMIT)
        raise ValueError(
            f"{size_text(size)} is too little for a Python process: pass at least {least}, or a unit too ('512MiB')"
        )
    return size


FunctionField = Annotated[Any, BeforeValidator(_check_function), PlainSerializer(function_reference)]
"""A callable, or its reference `package.module:function`, as which it is serialized."""

MemoryLimit = Annotated[Annotated[int, AfterValidator(_check_holds_python)] | None, BeforeValidator(_check_memory)]
"""Bytes, or text such as "512MiB"; None for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimit:
    """Limits the jobs that have the same `tool_name`.

    Raises:
        ValueError: a limit lets no job start, or is not a finite number.
    """

    max_concurrent: int | None = None
    """Attempts that may run at once; None for no limit."""
    rate: float | None = None
    """Starts a second, on average; None for no limit."""
    burst: int = 1
    """Starts that may follow one another at once after a pause."""
    buffer: float | None = None
    """The share of `rate` that is left unused, from 0 to below 1; None for `collection.rate_limit_buffer` of the
    settings."""

    def __post_init__(self) -> None:
        check_count("max_concurrent", self.max_concurrent, "lets no job start", or_none=", or None")
        if self.rate is not None and not _is_finite(self.rate):
            raise ValueError(f"rate={self.rate!r} is not a finite number: use more than 0, or None for no limit")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate={self.rate} lets no job start: use more than 0, or None")
        check_count("burst", self.burst, "lets no job start")
        if self.buffer is not None and not 0 <= self.buffer < 1:
            raise ValueError(f"buffer={self.buffer} is not a share: use 0 to below 1")
