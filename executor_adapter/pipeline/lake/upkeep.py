"""What is done to windows after they were written: to those that vanished, that are old, and that are small."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from datetime import UTC, date, datetime
from typing import Literal

import pyarrow as pa

from executor_adapter.exceptions import DataProcessingException
from executor_adapter.pipeline.disk import explained, sync_folder
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake.assembly import assemble, copy_window
from executor_adapter.pipeline.lake.files import FileWriter, publish
from executor_adapter.pipeline.lake.layout import window_of, workspace
from executor_adapter.pipeline.lake.merging import VANISHED_AT, marked
from executor_adapter.pipeline.lake.rebuild import rebuild
from executor_adapter.pipeline.lake.stored import Stored
from executor_adapter.pipeline.lake.table import LakeTable

Period = Literal["month", "year"]

_LENGTH: dict[Period, int] = {"year": 4, "month": 7}
_DATED = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


def settle_windows(
    table: LakeTable,
    present: Collection[str],
    *,
    looked_for: Callable[[str], bool] = lambda window: True,
    at: datetime | None = None,
) -> list[str]:
    """Apply the table's `vanished_windows` to the windows that its source has no longer, and return their names.

    Args:
        table: the table.
        present: the windows that the source has.
        looked_for: whether a window would be among these, if the source had it; others are left alone.
        at: when the source was asked, with a zone; None: now.

    Raises:
        DataProcessingException: DATA_ERROR, the source has no window at all, which is not believed.
    """
    moment = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds")
    gone = [
        window
        for window, entry in table.windows().items()
        if window not in present and looked_for(window) and entry.vanished_at is None
    ]
    if not gone or table.vanished_windows == "keep":
        return gone
    if not present:
        raise DataProcessingException(
            f"{table.place}: the source lists no window at all, so {len(gone)} would be gone: check the source, or "
            "remove them by hand",
            error_code="DATA_ERROR",
        )
    if table.vanished_windows == "delete":
        remove_windows(table, gone)
    else:
        for window in gone:
            _mark(table, window, moment)
    log("%s: no longer at the source: %s", table.place, ", ".join(gone))
    return gone


def remove_windows(table: LakeTable, windows: Collection[str]) -> None:
    """Remove windows; those that the table does not have are passed over."""
    with workspace(table.root) as space, table.exclusive() as stored:
        for path in stored.place.files():
            entries = stored.in_file(path)
            rest = [each for each in entries if each.entry.window not in windows]
            if len(rest) == len(entries):
                continue
            if rest:
                schema = stored.schema()
                publish(assemble(space / path.parent.name, rest, schema, table.cursor), path)
                continue
            with explained(path):
                path.unlink()
                path.parent.rmdir()
                sync_folder(path.parent.parent)


def expire_windows(table: LakeTable, before: date) -> list[str]:
    """Remove the windows that ended before a day, and return their names; see `is_expired`."""
    old = [window for window in table.windows() if is_expired(window, before)]
    remove_windows(table, old)
    return old


def is_expired(window: str, before: date) -> bool:
    """Return whether a window that is named by a day, a month or a year was over before a day.

    Whoever collects asks it too, so that what has expired is not collected again. A window of another name never
    expires.
    """
    if not _DATED.fullmatch(window):
        return False
    return window < before.isoformat()[: len(window)]


def compact_windows(table: LakeTable, period: Period, before: date) -> list[str]:
    """Put the windows of each month or year that ended before a day into one file; return the periods.

    The windows stay what they are: they are found, read and written as before. Readers of the folder see the period in
    the column `window` instead.
    """
    length = _LENGTH[period]
    with workspace(table.root) as space, table.exclusive() as stored:
        groups: dict[str, list[Stored]] = {}
        for each in stored.entries():
            name = window_of(each.path)
            whole = name[:length]
            rolled = _DATED.fullmatch(name) and len(name) > length and is_expired(whole, before)
            groups.setdefault(whole if rolled else name, []).append(each)
        merged = {name: each for name, each in groups.items() if len({entry.path for entry in each}) > 1}
        if not merged:
            return []
        schema = stored.schema()
        files = {name: each[0].path for name, each in groups.items() if name not in merged}
        for number, (name, members) in enumerate(merged.items()):
            files[name] = assemble(space / f"{number}.parquet", members, schema, table.cursor)
        rebuild(stored.place, files)
    log("%s: compacted: %s", table.place, ", ".join(merged))
    return sorted(merged)


def _mark(table: LakeTable, window: str, at: str) -> None:
    with workspace(table.root) as space, table.exclusive() as stored:
        found = stored.find(window)
        if found is None:
            return

        def mark(rows: pa.Table) -> pa.Table:
            return marked(rows, rows[VANISHED_AT].is_null(), at)

        file = FileWriter(space / "marked.parquet", stored.schema(), table.cursor)
        for each in stored.in_file(found.path):
            is_it = each.entry.window == window
            entry = each.entry.renamed(vanished_at=at) if is_it else each.entry
            copy_window(Stored(entry, each.start, each.path), file, mark if is_it else None)
        file.close()
        publish(file.path, found.path)
