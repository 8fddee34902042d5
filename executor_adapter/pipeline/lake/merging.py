"""Rows that were collected again: the newer replaces the older by its key, and those that vanished are settled.

Runs may overtake one another: of each row of a window it is known when the source was asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.lake.stored import MAX_RANGES, Range
from executor_adapter.pipeline.text_rows import value_text

MAX_AHEAD = timedelta(days=1)
"""How far after now a cursor may be: a day may have begun elsewhere, and clocks differ."""


def key_texts(rows: pa.Table, key: Sequence[str]) -> pa.Array:
    """Return one text for each row that is the same for two rows exactly where their keys are; null equals null."""
    if len(key) == 1:
        return rows[key[0]].combine_chunks().cast(pa.string())
    return pc.binary_join_element_wise(*(_key_part(rows[name]) for name in key), "/")


def _key_part(values: pa.ChunkedArray) -> pa.Array:
    # Of each value the text is made once, however many rows have it.
    found = values.combine_chunks().dictionary_encode(null_encoding="encode")
    text = found.dictionary.cast(pa.string())
    # The length tells ("a", "bc") from ("ab", "c").
    length = pc.binary_length(text).cast(pa.string())
    return pc.fill_null(pc.binary_join_element_wise(length, text, ":"), "-").take(found.indices)


def last_of_each(keys: pa.Array, values: pa.Array | None = None) -> pa.Array:
    """Return the mask of one row for each key: the last one, or of `values` the last one with the highest.

    Of texts the highest says nothing: "9" is above "10", and moments may have other zones.
    """
    places = ranks = pa.array(range(len(keys)), pa.uint64())
    if values is not None and not pa.types.is_string(values.type):
        places = pc.array_sort_indices(values, null_placement="at_start")  # Equal ones keep their order.
    ranked = pa.table({"key": keys.take(places), "rank": ranks})
    last = ranked.group_by("key").aggregate([("rank", "max")])["rank_max"].combine_chunks()
    return pc.is_in(ranks, places.take(last))


def typed(text: str, kind: pa.DataType) -> pa.Scalar:
    """Return a bound or a watermark as a value of the cursor column.

    Raises:
        DataProcessingException: CONFIGURATION_ERROR, it is not one.
    """
    try:
        return pa.scalar(text[:10] if pa.types.is_date(kind) else text).cast(kind)  # A range of days has their moments.
    except pa.ArrowInvalid:
        said = f"{text!r} is not a value of the cursor column, which is {kind}: give one, moments with their zone"
        raise rows_error(said, "lake", "CONFIGURATION_ERROR") from None


def with_range(new: Range, known: Sequence[Range], stay: pa.Array) -> tuple[Range, ...]:
    """Return what is known of a window whose new rows were written before those of the older ones that `stay`."""
    found, start = [new], 0
    for each in known:
        rows = stay.slice(start, each.rows).true_count
        start += each.rows
        if rows or each.origin != new.origin or each.collected_at > new.collected_at:
            found.append(replace(each, rows=rows))
    if len(found) > MAX_RANGES:
        newer, older = found[-2:]
        found[-2:] = [replace(newer, rows=newer.rows + older.rows)]
    return tuple(found)


def highest_of(values: pa.Array, column: str) -> Any:
    """Return the highest of the values of a cursor column; None where there is none.

    Raises:
        DataProcessingException: DATA_ERROR, one is a moment that is more than `MAX_AHEAD` after now: no row before it
            would ever be asked for again.
    """
    highest = pc.max(values).as_py()
    text = value_text(highest)
    with suppress(ValueError):  # Of numbers and texts nobody knows which are in the future.
        moment = datetime.fromisoformat(text if text[4:5] == "-" else "")
        if moment.replace(tzinfo=moment.tzinfo or UTC) > datetime.now(UTC) + MAX_AHEAD:
            said = "is in the future, and would hide all rows before it: correct it at the source, or exclude it by a"
            raise rows_error(f"{column}: {text} {said} query", "lake")
    return highest


def watermark_after(before: str | None, asked: Range, highest: Any, kind: pa.DataType | None) -> str | None:
    """Return the value up to which all of a window was asked for, once a part was whose highest value is `highest`.

    A part that begins after that, or one with an end before anything else, leaves a gap, which the next run asks for.
    """
    if highest is None or (before is None and asked.until is not None):
        return before
    if before is None:
        return value_text(highest)
    mark = typed(before, kind).as_py()
    has_gap = asked.since is not None and typed(asked.since, kind).as_py() > mark
    return before if has_gap else value_text(max(mark, highest))


def since_of(watermark: str, kind: pa.DataType, look_back: float, start: str | None) -> str | None:
    """Return from where to ask for what is new: see `LakeTable.next_since`."""
    value = typed(watermark, kind).as_py()
    if look_back:
        value -= _in_unit_of(value, look_back)
    return start if start is not None and value < typed(start, kind).as_py() else value_text(value)


def _in_unit_of(value: Any, amount: float) -> timedelta | Decimal | float:
    if isinstance(value, Decimal):
        return Decimal(str(amount))
    if isinstance(value, date):
        return timedelta(seconds=amount) if isinstance(value, datetime) else timedelta(days=amount)
    return int(amount) if amount == int(amount) else amount
