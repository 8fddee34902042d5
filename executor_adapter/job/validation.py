"""Which numbers can be meant: others are refused before anything starts, with the value and the way out."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError


def no_bool(value: Any) -> Any:
    """The value itself; True and False, which Python takes for 1 and 0, are nobody's number."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    return value


# Bounds inside, where pydantic's core checks them: around a function it would call another one for each.
Number = Annotated[float, BeforeValidator(no_bool), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(no_bool)]
Seconds = Annotated[Annotated[float, Field(gt=0, allow_inf_nan=False)], BeforeValidator(no_bool)]
Delay = Annotated[Annotated[float, Field(ge=0, allow_inf_nan=False)], BeforeValidator(no_bool)]
Factor = Annotated[Annotated[float, Field(ge=1, allow_inf_nan=False)], BeforeValidator(no_bool)]
Retries = Annotated[Annotated[int, Field(ge=0)], BeforeValidator(no_bool)]


def check_count(name: str, value: Any, too_few: str, *, or_none: str = "") -> None:
    """
    Raises:
        ValueError: `value` is no whole number from 1 on; `too_few` says what a smaller one would do.
    """
    if not _is_whole(value):
        raise ValueError(f"{name}={value!r} is no whole number: give 1 or more{or_none}")
    if value < 1:
        raise ValueError(f"{name}={value} {too_few}: give at least 1{or_none}")


def check_rate(name: str, value: Any) -> None:
    """
    Raises:
        ValueError: `value` is no finite number above 0.
    """
    if not _is_finite(value):
        raise ValueError(f"{name}={value!r} is no finite number: give more than 0, or None for no limit")
    if value <= 0:
        raise ValueError(f"{name}={value} lets no job start: give more than 0, or None")


def check_age(name: str, value: Any) -> None:
    """
    Raises:
        ValueError: `value` is no finite number from 0 on.
    """
    if not _is_finite(value) or value < 0:
        raise ValueError(f"{name}={value!r} is no age: give 0 (all that is over) or more")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
