"""What an operator asks of a table: how it is, which windows it lacks, and which rows were rejected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any

from executor_adapter.pipeline.processing import balance
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.text_rows import READ
from executor_adapter.pipeline.upkeep import lateness

_LENGTHS = {"daily": len("2013-01-31"), "monthly": len("2013-01")}


def status_of(table: ConfiguredTable, now: datetime | None = None) -> dict[str, Any]:
    """Return how a table is.

    Returns:
        `table`; `collected_at`: when the source was last asked for what is there, in ISO 8601, UTC, or None;
        `late_seconds`: see `lateness`; `rows`: all that were collected, `rejected` and `unprocessed` ones too;
        `windows`: how many there are; `missing`: see `missing_windows`.
    """
    windows, found = table.raw.windows(), balance(table.full_name, [table])
    return {
        "table": table.full_name,
        "collected_at": max((each.collected_at for each in windows.values()), default=None),
        "late_seconds": lateness(table, now),
        "rows": found.collected,
        "rejected": found.rejected,
        "unprocessed": found.unprocessed,
        "windows": len(windows),
        "missing": missing_windows(table, now),
    }


def missing_windows(table: ConfiguredTable, now: datetime | None = None) -> tuple[str, ...]:
    """Return the days or months after its first one that are over and that a table lacks, by what its `expect` says.

    It is empty where `expect` is neither `daily` nor `monthly`, and where the windows are not days or months.
    """
    today = (now or datetime.now(UTC)).astimezone(UTC).date()
    length = _LENGTHS.get(table.settings.expect or "", 0)
    days = {window: day for window in table.raw.windows() if len(window) == length and (day := _first_day(window))}
    first = min(days.values(), default=today)
    passed = (first + timedelta(days=number) for number in range((today - first).days))
    names = dict.fromkeys(day.isoformat()[:length] for day in passed)
    names.pop(today.isoformat()[:length], None)
    return tuple(name for name in names if name not in days and table.wants(name, today))


def _first_day(window: str) -> date | None:
    with suppress(ValueError):
        return date.fromisoformat(window if window.count("-") == 2 else f"{window}-01")
    return None


def rejected_rows(table: ConfiguredTable, window: str) -> Iterator[dict[str, Any]]:
    """Yield what was rejected of a window by its steps, and of the delivery of that name when it was read."""
    for name in (READ + window, window):
        if table.rejects.find(name) is not None:
            with table.rejects.reading(name) as batches:
                for row in (row for batch in batches for row in batch.to_pylist()):
                    yield {field: row[field] for field in ("reason", "line", "row", "step", "delivery", "text")}
