"""Which answer of a source is the newer one, for each part of a window: runs may overtake one another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from functools import total_ordering
from typing import Any

import pyarrow as pa

from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.lake.footers import MAX_RANGES, Range
from executor_adapter.pipeline.lake.merging import text_of, typed


def is_overtaken(new: Range, known: tuple[Range, ...], kind: pa.DataType | None) -> bool:
    """Return whether a newer answer for the whole of `new` is in the lake already.

    Raises:
        DataCollectionException: LOCKED, there is one for a part of it only: it has to be collected again.
    """
    newer = [each for each in known if each.origin == new.origin and is_older(new, each, kind)]
    if not newer:
        return False
    if any(_covers(each, new, kind) for each in newer):
        return True
    raise DataCollectionException(
        "a part of the window was collected again by another run meanwhile: collect it again", error_code="LOCKED"
    )


def is_older(new: Range, known: Range, kind: pa.DataType | None) -> bool:
    """Return whether `new` was asked for before `known`, for a part of it at least."""
    return known.collected_at > new.collected_at and _overlap(known, new, kind)


def with_range(new: Range, known: tuple[Range, ...], kind: pa.DataType | None) -> tuple[Range, ...]:
    """Return what is known of a window after `new` was written: what it covers of others is theirs no more."""
    rest = []
    for each in known:
        if each.origin != new.origin or not _overlap(each, new, kind):
            rest.append(each)
            continue
        if _low(each, kind) < _low(new, kind):
            rest.append(replace(each, until=new.since))
        if _high(new, kind) < _high(each, kind):
            rest.append(replace(each, since=new.until))
    return (*rest, new)[-MAX_RANGES:]


def next_since(
    ranges: tuple[Range, ...], watermark: str | None, kind: pa.DataType, look_back: timedelta | float
) -> str | None:
    """Return from where to ask for what is new: see `LakeTable.next_since`."""
    first = min(ranges, key=lambda each: _low(each, kind))
    end = _end_of_first_part(ranges, kind)
    known = [each for each in (end, watermark) if each is not None]
    if not known:
        return first.since
    value = min(typed(each, kind).as_py() for each in known)
    if look_back:
        value -= look_back
    lowest = None if first.since is None else typed(first.since, kind).as_py()
    return first.since if lowest is not None and value < lowest else text_of(value)


def _end_of_first_part(ranges: tuple[Range, ...], kind: pa.DataType) -> str | None:
    """Return where the first value is that was never asked for; None where there is none."""
    end: Range | None = None
    for each in sorted(ranges, key=lambda each: _low(each, kind)):
        if end is not None and _high(end, kind) < _low(each, kind):
            break
        if end is None or _high(end, kind) < _high(each, kind):
            end = each
    return None if end is None else end.until


@dataclass(frozen=True, slots=True)
@total_ordering
class _Bound:
    """A bound of a range, which can be infinite."""

    infinite: int
    """-1 and 1 are below and above every value."""
    value: Any = None

    def __lt__(self, other: _Bound) -> bool:
        if self.infinite or other.infinite:
            return self.infinite < other.infinite
        return bool(self.value < other.value)


def _low(bounds: Range, kind: pa.DataType | None) -> _Bound:
    return _Bound(-1) if bounds.since is None or kind is None else _Bound(0, typed(bounds.since, kind).as_py())


def _high(bounds: Range, kind: pa.DataType | None) -> _Bound:
    return _Bound(1) if bounds.until is None or kind is None else _Bound(0, typed(bounds.until, kind).as_py())


def _overlap(one: Range, other: Range, kind: pa.DataType | None) -> bool:
    return _low(one, kind) < _high(other, kind) and _low(other, kind) < _high(one, kind)


def _covers(one: Range, other: Range, kind: pa.DataType | None) -> bool:
    return _low(one, kind) <= _low(other, kind) and _high(other, kind) <= _high(one, kind)
