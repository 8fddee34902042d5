"""What is done to windows after they were written: to those that vanished, and that are old."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa

from executor_adapter.pipeline.disk import explained, sync_folder
from executor_adapter.pipeline.errors import rows_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake.files import FileWriter, copy_window, publish
from executor_adapter.pipeline.lake.layout import VANISHED_AT, workspace
from executor_adapter.pipeline.lake.merging import marked
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.text_rows import READ

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
        said = f"the source lists no window, so {len(gone)} would be gone: check the source, or remove them by hand"
        raise rows_error(f"{table}: {said}", "lake")
    if table.vanished_windows == "delete":
        remove_windows(table, gone)
    else:
        for window in gone:
            _mark(table, window, moment)
    log("%s: no longer at the source: %s", table, ", ".join(gone))
    return gone


def remove_windows(table: LakeTable, windows: Collection[str]) -> None:
    """Remove windows; those that the table does not have are passed over."""
    with table.exclusive() as stored:
        for window in windows:
            path = stored.table.file_of(window)
            if path.exists():
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
    return not is_between(window.removeprefix(READ), before.isoformat(), None)


def is_between(window: str, since: str | None, until: str | None) -> bool:
    """Return whether a part of a window that is named by a day, a month or a year is in a range of days.

    A window of another name always is. The bounds are in ISO 8601; `until` is the first moment after the range.
    """
    if not _DATED.fullmatch(window):
        return True
    last = until and (datetime.fromisoformat(until) - timedelta(microseconds=1)).isoformat()
    return (since is None or window >= since[: len(window)]) and (last is None or window <= last[: len(window)])


def _mark(table: LakeTable, window: str, at: str) -> None:
    with workspace(table.root) as space, table.exclusive() as stored:
        found = stored.find(window)
        if found is None:
            return

        def mark(rows: pa.Table) -> pa.Table:
            return marked(rows, rows[VANISHED_AT].is_null(), at)

        file = FileWriter(space / "marked.parquet", stored.schema(), table.cursor)
        copy_window(found, file, replace(found.entry, vanished_at=at), mark)
        publish(file.path, found.path)
