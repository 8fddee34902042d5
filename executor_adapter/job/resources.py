"""What an attempt needs of its machine beside a slot: processors, GPUs, memory and whatever the user counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from executor_adapter.job.mistakes import did_you_mean
from executor_adapter.job.validation import size_in_bytes, size_text

CPU, GPU, MEMORY = "CPU", "GPU", "memory"
"""The resources of every machine. All other names are counted as the user says."""

Shape = tuple[tuple[str, int], ...]
"""Names and UNITS, sorted: what one attempt needs. Jobs of one shape can replace one another."""

UNITS = 10_000
"""Parts of one that amounts are counted in, since sums of floats do not add up."""

MAX_AMOUNT = 1e15


def checked_resources(value: Any) -> dict[str, float] | None:
    """Return resources as numbers: memory in bytes, GPUs whole or a share of one; None for none.

    Raises:
        ValueError: a name or an amount could never be meant.
    """
    amounts = _amounts(value, least=1 / UNITS)
    if (gpus := amounts.get(GPU, 0)) > 1 and gpus != int(gpus):
        raise ValueError(f"'GPU': {gpus} is no share of one GPU: pass a whole number, or less than 1")
    return amounts or None


def checked_capacity(value: Any) -> dict[str, float] | None:
    """Return what there is in all as numbers, as `checked_resources` does; 0 is an amount, and GPUs are whole.

    Raises:
        ValueError: a name or an amount could never be meant.
    """
    amounts = _amounts(value, least=0)
    if not float(gpus := amounts.get(GPU, 0)).is_integer():
        raise ValueError(f"'GPU': {gpus} is not a number of GPUs: pass a whole number")
    return amounts or None


def _amounts(value: Any, least: float) -> dict[str, float]:
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return {name: _amount(name, amount, least) for name, amount in value.items()}
    raise PydanticCustomError("resources", "must be names and amounts, such as {{'CPU': 2, 'memory': '4GiB'}}")


def _amount(name: Any, amount: Any, least: float) -> float:
    if not isinstance(name, str) or not name or len(name) > 100 or not name.isprintable():
        raise ValueError(f"{name!r} does not name a resource: pass text such as 'CPU' or 'license'")
    known = (CPU, GPU, MEMORY)
    if name not in known and name.casefold() in (ours := {each.casefold(): each for each in known}):
        raise ValueError(f"there is no resource {name!r}: {did_you_mean(ours[name.casefold()], known)}")
    number = size_in_bytes(amount) if name == MEMORY else amount
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    if not is_number or not least <= number <= MAX_AMOUNT:
        raise ValueError(f"{name!r}: {amount!r} is not an amount: pass a number above 0, or leave {name} out")
    return int(number) if number == int(number) else number


def units_of(amount: float) -> int:
    """Return an amount in whole UNITS."""
    return round(amount * UNITS)


def amount_text(name: str, units: int) -> str:
    """Return an amount of a resource for people: "memory 4 GiB", "CPU 2"."""
    return f"{name} {size_text(units // UNITS)}" if name == MEMORY else f"{name} {units / UNITS:.10g}"


def shape_of(units: Mapping[str, int] | None) -> Shape:
    """Return the shape of what an attempt needs; None: nothing but a slot."""
    return tuple(sorted(units.items())) if units else ()


def shape_text(shape: Shape) -> str:
    """Return a shape for people: "CPU 2, memory 4 GiB"."""
    return ", ".join(amount_text(name, units) for name, units in shape)


CapacityField = Annotated[dict[str, float] | None, BeforeValidator(checked_capacity)]
"""Names and amounts, as `checked_capacity` returns them; None for none."""

Resources = Annotated[dict[str, float] | None, BeforeValidator(checked_resources)]
"""Names and amounts, as `checked_resources` returns them; None for none."""
