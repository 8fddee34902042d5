"""What is done to configured tables now and then: what is old goes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

from executor_adapter.pipeline.disk import TEMPORARY
from executor_adapter.pipeline.lake.layout import remove_leftovers
from executor_adapter.pipeline.lake.upkeep import expire_windows, remove_windows, settle_windows
from executor_adapter.pipeline.sources.landing import outdated_landings
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.text_rows import READ

PERIODS = {"hourly": 3_600.0, "daily": 86_400.0, "weekly": 604_800.0, "monthly": 2_678_400.0}
"""Seconds within which new rows are expected, by what `expect` of a table says."""


def keep_table(table: ConfiguredTable, now: datetime | None = None) -> int:
    """Remove the windows that are older than the table's `keep_days`; return how many, over all layers."""
    today = (now or datetime.now(UTC)).astimezone(UTC).date()
    days = table.settings.keep_days
    if days is None:
        return 0
    return sum(len(expire_windows(layer, today - timedelta(days=days))) for layer in table.layers)


def lateness(table: ConfiguredTable, now: datetime | None = None) -> float | None:
    """Return for how many seconds new rows have been expected; None: they are not late, or none are expected."""
    given = [entry.collected_at for entry in table.raw.windows().values() if entry.rows]
    if table.settings.expect is None or not given:
        return None
    last = datetime.fromisoformat(max(given))
    late = ((now or datetime.now(UTC)) - last).total_seconds() - PERIODS[table.settings.expect]
    return late if late > 0 else None


def settle_table(table: ConfiguredTable, present: Collection[str]) -> list[str]:
    """Apply the table's `vanished_windows` to the windows that its source has no longer, and return their names.

    Args:
        table: a table of files.
        present: the windows that all its files have together.

    Raises:
        DataProcessingException: see `settle_windows`.
    """
    today = datetime.now(UTC).date()
    gone = settle_windows(table.raw, present, looked_for=lambda window: table.wants(window, today))
    if gone and table.settings.vanished_windows == "delete":
        for layer in table.layers[1:]:
            remove_windows(layer, [*gone, *(READ + window for window in gone)])
    return gone


def clean_lake(root: Path, older_than: float) -> tuple[int, int]:
    """Remove what writers that died have left, and landings in whose place a newer one of the same window came.

    Args:
        root: the folder of the lake.
        older_than: seconds since they were last written.

    Returns:
        How many of each were removed.
    """
    files = remove_leftovers(root, older_than=older_than)
    before = time.time() - older_than
    for stale in root.rglob(f"{TEMPORARY}*"):
        if stale.is_file() and stale.stat().st_mtime < before:
            stale.unlink(missing_ok=True)
            files += 1
    landings = outdated_landings(root, before)
    for folder in landings:
        shutil.rmtree(folder, ignore_errors=True)
    return files, len(landings)
