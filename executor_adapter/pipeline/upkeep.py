"""What an operator asks of tables: how they are, what they lack, what was rejected; and what goes when it is old.

And what the tool's owner says that they hold, in sentences and a picture.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.disk import TEMPORARY, writing
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.importing import import_object
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake.stored import WRITING, rows_in
from executor_adapter.pipeline.lake.table import is_expired, remove_windows
from executor_adapter.pipeline.processing import balance
from executor_adapter.pipeline.sources.landing import SINGLE_WINDOW, landings_of, unneeded
from executor_adapter.pipeline.storing import stored_before
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.text_rows import BATCH_ROWS, READ

PERIODS = {"hourly": 3_600.0, "daily": 86_400.0, "weekly": 604_800.0, "monthly": 2_678_400.0}
"""Seconds within which new rows are expected, by what `expect` of a table says."""

_LEFTOVERS = (
    f"{WRITING}/*",
    *(f"{place}{TEMPORARY}*" for place in ("", ".state/**/", "landing/*/*/.days/", "reports/*/")),
)
"""Where a writer that died may have left something; not in the folders of the windows, of which there are many."""

_LENGTHS = {"daily": len("2013-01-31"), "monthly": len("2013-01")}


def status_of(table: ConfiguredTable, now: datetime | None = None) -> dict[str, Any]:
    """Return how a table is.

    Returns:
        `table`; `collected_at`: when it was last collected or made anew, also where nothing was new, in ISO 8601, UTC;
        None: never;
        `late_seconds`: see `lateness`; `rows`: all that were collected, `rejected` and `unprocessed` ones too;
        `processed`: those that its steps made of them; `windows`: how many there are; `cursor`: up to where all was
        asked for by its `cursor`, None without one; `missing`: see `missing_windows`.
    """
    windows, found = table.raw.windows(), balance(table.full_name, [table])
    # When a delivery was stored, or found to be stored already.
    stored = [file.stat().st_mtime for file in (table.raw.state / "landings").glob("*.json")]
    return {
        "table": table.full_name,
        "collected_at": datetime.fromtimestamp(max(stored), UTC).isoformat() if stored else None,
        "late_seconds": lateness(table, now),
        "rows": found.collected,
        "processed": found.processed,
        "rejected": found.rejected,
        "unprocessed": found.unprocessed,
        "windows": len(windows),
        "cursor": table.raw.watermark_of(windows.get(SINGLE_WINDOW)),
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


def check_window(window: str, known: Iterable[str]) -> None:
    """Refuse a window that is not known.

    Raises:
        ConfigurationError: it is not known.
    """
    if window not in known:
        raise ConfigurationError(f"window: {window!r} is in none of these tables: `executor-adapter pipeline windows`")


def rejected_rows(tables: Sequence[ConfiguredTable], window: str) -> Iterator[dict[str, Any]]:
    """Yield what was rejected of a window by the steps of tables, and of the delivery of that name when it was read.

    Raises:
        ConfigurationError: none of the tables has such a window, or was given such a delivery.
    """
    known = set[str]()
    for table in tables:
        known |= {*table.raw.windows(), *table.rejects.windows()}
        known |= {each.manifest.window.name for each in landings_of(table.lake, table.tool_name, table.name)}
    check_window(window, known)
    for table, name in ((table, name) for table in tables for name in (READ + window, window)):
        if table.rejects.find(name) is not None:
            for rows in rows_in(table.rejects.file_of(name)):
                for row in (row for batch in rows.to_batches(BATCH_ROWS) for row in batch.to_pylist()):
                    yield {field: row[field] for field in ("reason", "line", "row", "step", "delivery", "text")}


def expire_windows(table: ConfiguredTable, now: datetime | None = None) -> int:
    """Remove the windows that are older than the table's `keep_days`; return how many, over all layers.

    What was wrong with a delivery goes with the last of the windows that it had rows of.
    """
    days, removed = table.settings.keep_days, 0
    for layer in table.layers if days is not None else ():
        before = (now or datetime.now(UTC)).astimezone(UTC).date() - timedelta(days=days or 0)
        old = [name for name in layer.windows() if all(is_expired(each, before) for each in _parts(table, name))]
        remove_windows(layer, old)
        removed += len(old)
    return removed


def _parts(table: ConfiguredTable, window: str) -> Collection[str]:
    """Return the windows that a delivery had rows of where a window has what was wrong with it, else the window."""
    found = stored_before(table, window.removeprefix(READ))[1] if window.startswith(READ) else {}
    return found.get("windows") or [window]


def lateness(table: ConfiguredTable, now: datetime | None = None) -> float | None:
    """Return for how many seconds new rows have been expected; None: they are not late, or none are expected.

    A table that never got a row is late from the first run on that expected some.
    """
    given = [entry.collected_at for entry in table.raw.windows().values() if entry.rows]
    if table.settings.expect is None or not (given or _expected(table).exists()):
        return None
    last = datetime.fromisoformat(max(given)).timestamp() if given else _expected(table).stat().st_mtime
    late = (now or datetime.now(UTC)).timestamp() - last - PERIODS[table.settings.expect]
    return late if late > 0 else None


def expect_rows(table: ConfiguredTable) -> None:
    """Note that a run expects rows of the table from now on, if none did so before."""
    if table.settings.expect is not None and not _expected(table).exists():
        _expected(table).parent.mkdir(parents=True, exist_ok=True)
        _expected(table).touch()


def _expected(table: ConfiguredTable) -> Path:
    return table.raw.state / "expected"


def settle_windows(
    table: ConfiguredTable, present: Collection[str], now: datetime | None = None, files: Collection[str] | None = None
) -> list[str]:
    """Apply the table's `vanished_windows` to the windows that its source has no longer, and return their names.

    Those that it would not be asked for are left alone. What was wrong with a file goes with it.

    Args:
        table: a table of files.
        present: the windows that all its files have together.
        now: the time, with a zone; None: the current one.
        files: the names of all its files; None: those that are windows by themselves are called like these.

    Raises:
        DataProcessingException: DATA_ERROR, the source has no window at all, which is not believed.
    """
    today = (now or datetime.now(UTC)).astimezone(UTC).date()
    # A job that was processing one when it went may have published its rows afterwards.
    known = {**table.raw.windows(), **table.processed.windows()}
    gone = [window for window in known if window not in present and table.wants(window, today)]
    # What steps have rejected is of no file.
    origins = {name: origin for name, entry in table.rejects.windows().items() if (origin := entry.ranges[0].origin)}
    lost = [name for name, origin in origins.items() if (origin in gone if files is None else origin not in files)]
    if not (gone or lost) or table.settings.vanished_windows == "keep":
        return gone
    if gone and not present:
        said = f"the source lists no window, so {len(gone)} would be gone: check the source, or remove them by hand"
        raise rows_error(f"{table.raw}: {said}", "lake")
    remove_windows(table.rejects, lost)
    # The raw window goes last: while it is there, a settle that was cut short is made up for.
    for layer in reversed(table.layers):
        remove_windows(layer, gone)
    log("%s: no longer at the source: %s", table.raw, ", ".join([*gone, *lost]))
    return gone


def remove_leftovers(root: Path, *, older_than: float) -> int:
    """Remove what writers that died have left, and landings that are not needed; return how many of them.

    Args:
        root: the folder of the lake.
        older_than: seconds since the last write. A writer that lives writes all the time.
    """
    before, removed = time.time() - older_than, 0
    for left in (*unneeded(root), *(path for pattern in _LEFTOVERS for path in root.glob(pattern))):
        with suppress(FileNotFoundError):
            if max(path.stat().st_mtime for path in (left, *left.rglob("*"))) < before:
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink()
                removed += 1
    return removed


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the function that a tool names as its `summary` returns; it is called with the tables by name."""

    lines: Sequence[str] = ()
    """Sentences for the report."""
    png: bytes | None = None
    """A picture for the report."""
    title: str = "the picture"
    """What the picture shows."""


def summarise_tables(tool: str, tables: Sequence[ConfiguredTable], reference: str) -> dict[str, Any]:
    """Return what the function `reference` says of the tables of a tool; the body of a job.

    Returns:
        `lines`; `title` and `png`: the path of the picture, or None.

    Raises:
        ConfigurationError: the function cannot be imported, or returns something else.
    """
    found = import_object(reference, "summary")({table.name: table for table in tables})
    if not isinstance(found, Summary):
        raise ConfigurationError(f"summary: {reference} returned {type(found).__name__}: return a Summary")
    for line in found.lines:
        log("%s", line)
    path = None
    if found.png is not None:
        path = tables[0].lake / "reports" / tool / "summary.png"
        with writing(path) as file:
            file.write(found.png)
    return {"lines": list(found.lines), "title": found.title, "png": None if path is None else str(path)}
