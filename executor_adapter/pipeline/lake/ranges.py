"""Which answer of a source is the newer one, for each part of a window: runs may overtake one another."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa

from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.lake.footers import MAX_RANGES, Range
from executor_adapter.pipeline.lake.merging import text_of, typed

Bound = tuple[int, Any]
"""A bound of a range, as it is compared: -1 and 1 are below and above every value, and 0 comes with a value."""


def is_overtaken(new: Range, known: tuple[Range, ...], kind: pa.DataType | None) -> bool:
    """Return whether a newer answer for the whole of `new` is in the lake already.

    Raises:
        DataCollectionException: LOCKED, there is one for a part of it only: it has to be collected again.
    """
    newer = [each for each in known if each.origin == new.origin and is_older(new, each, kind)]
    if newer and not any(_covers(each, new, kind) for each in newer):
        raise DataCollectionException(
            "a part of the window was collected again by another run meanwhile: collect it again", error_code="LOCKED"
        )
    return bool(newer)


def is_older(new: Range, known: Range, kind: pa.DataType | None) -> bool:
    """Return whether `new` was asked for before `known`, for a part of it at least."""
    overlap = _low(known, kind) < _high(new, kind) and _low(new, kind) < _high(known, kind)
    return known.collected_at > new.collected_at and overlap


def with_range(new: Range, known: tuple[Range, ...], kind: pa.DataType | None) -> tuple[Range, ...]:
    """Return what is known of a window after `new` was written, without the answers that it covers."""
    rest = [each for each in known if each.origin != new.origin or not _covers(new, each, kind)]
    return (*rest, new)[-MAX_RANGES:]


def next_since(
    ranges: tuple[Range, ...], watermark: str | None, kind: pa.DataType, look_back: timedelta | float
) -> str | None:
    """Return from where to ask for what is new: see `LakeTable.next_since`."""
    ordered = sorted(ranges, key=lambda each: _low(each, kind))
    first = _low(ordered[0], kind)
    # Up to here all was asked for, without a gap.
    end = first
    for each in ordered:
        if end < _low(each, kind):
            break
        end = max(end, _high(each, kind))
    values = [] if end[0] else [end[1]]
    if watermark is not None:
        values.append(typed(watermark, kind).as_py())
    if not values:
        return ordered[0].since
    value = min(values) - look_back if look_back else min(values)
    return ordered[0].since if (0, value) < first else text_of(value)


def _low(bounds: Range, kind: pa.DataType | None) -> Bound:
    return (-1, None) if bounds.since is None or kind is None else (0, typed(bounds.since, kind).as_py())


def _high(bounds: Range, kind: pa.DataType | None) -> Bound:
    return (1, None) if bounds.until is None or kind is None else (0, typed(bounds.until, kind).as_py())


def _covers(one: Range, other: Range, kind: pa.DataType | None) -> bool:
    return _low(one, kind) <= _low(other, kind) and _high(other, kind) <= _high(one, kind)
