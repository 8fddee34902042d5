"""Collects a table: its windows are found, and each is landed and stored. Each function is a job's body."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from executor_adapter.config import FilesTool, FileTable, FunctionTool, RestTool, SqlTool
from executor_adapter.pipeline.disk import writing
from executor_adapter.pipeline.errors import configuration_error
from executor_adapter.pipeline.job_log import do_each
from executor_adapter.pipeline.lake.stored import workspace
from executor_adapter.pipeline.loading import Loader
from executor_adapter.pipeline.sources.files import find_files, land_file
from executor_adapter.pipeline.sources.landing import SINGLE_WINDOW, Landing, Window, find_landing, landings_of
from executor_adapter.pipeline.sources.reading import check_content, read_texts
from executor_adapter.pipeline.storing import Collected, store_landing
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.text_rows import connected
from executor_adapter.terminal import escaped

SETTLE_TIME = 3600.0
"""Seconds after the end of a day after which no late object is added to it, so that it is not asked for again."""
MAX_WHOLE = 64 << 20
"""Bytes of a file of which the beginning alone cannot be read, at most: of a larger one no sample is read."""
BY_LINE = (".csv", ".tsv", ".txt", ".ndjson", ".jsonl")
"""How the names of files end of which the beginning alone can be read."""


def find_windows(
    table: ConfiguredTable, since: date | None = None, until: date | None = None, now: datetime | None = None
) -> list[Window]:
    """Return the windows of a table that are to be collected now.

    They are its files, of whose days and months a range has those that are in it; of an API that is asked by day the
    UTC days that were not collected after their end, however long ago that was, and those from `days` ago until today;
    else one window, from where a column that is its cursor was read up to. Those that would have expired are left out.

    Args:
        table: the table.
        since: the first day of a range that is collected again; None: what is new.
        until: the first day after that range; None: up to now.
        now: the time, with a zone; None: the current one.

    Raises:
        DataCollectionException: see `find_files`.
    """
    today = (now or datetime.now(UTC)).astimezone(UTC).date()
    if isinstance(table.tool, FilesTool):
        return [replace(each, since=_start(since), until=_start(until)) for each in find_files(table.tool, table.name)]
    if isinstance(table.tool, RestTool) and table.is_dated:
        first, end = today - timedelta(days=table.tool.days), today + timedelta(days=1)
        late = _late_days(table, first, today) if since is None and until is None else []
        return late + _days(table, since or first, until or end, today)
    if table.cursor is None:
        return [Window()]
    if since is None and until is None:
        lowest = table.raw.next_since(SINGLE_WINDOW, table.settings.look_back, getattr(table.settings, "start", None))
        return [Window(since=lowest, cursor=table.cursor)]
    # It has an end, since one without would be taken for the first run, and hide the rows before it.
    return [Window(since=_start(since), until=_start(until or today + timedelta(days=1)), cursor=table.cursor)]


def land(table: ConfiguredTable, window: Window, *, is_over: bool = False) -> Landing:
    """Land one window of a table, whatever its source is; the body of a job in a thread.

    Args:
        table: the table, of a tool with a source.
        window: the window, one of `find_windows`.
        is_over: REST: whether the window does not change any more: a landing that is there is returned, and the API is
            not asked again.

    Raises:
        DataCollectionException: see the source.
    """
    # Imported here, because a job needs one source, and each has libraries of its own.
    match table.tool:
        case FilesTool() as tool:
            return land_file(table, tool, window)
        case RestTool() as tool:
            from executor_adapter.pipeline.sources.rest.resource import land_resource

            return land_resource(table, tool, window, is_over=is_over)
        case SqlTool() as tool:
            from executor_adapter.pipeline.sources.sql import land_query

            return land_query(table, tool, window)
        case FunctionTool() as tool:
            from executor_adapter.pipeline.sources.functions import land_function

            return land_function(table, tool, window)
        case _:
            said = f"tools.{table.tool_name} has no source: set source to files, rest, sql or function"
            raise configuration_error(said)


def collect_windows(table: ConfiguredTable, windows: Sequence[Window], *, again: bool = False) -> dict[str, Any]:
    """Collect several windows one after another, as `collect_window` does, and return their sum.

    `failed` are the windows of several that cannot be collected; to collect each of them alone raises its error.
    """
    nothing = {"records_collected": 0, "again": 0, "status": "collected", "rows": 0, "windows": []}
    with workspace(table.lake) as space, connected(space):
        return do_each(windows, lambda window: collect_window(table, window, again=again), nothing)


def collect_window(table: ConfiguredTable, window: Window, *, again: bool = False) -> dict[str, Any]:
    """Land a window and store its rows; what was collected already is neither asked for nor stored again.

    Args:
        table: the table.
        window: one of `find_windows`.
        again: whether the source is asked for what is known already.

    Returns:
        `records_collected`: new rows, those that do not fit included; `again`: others that were stored, whose `key` was
        there; `status`: `collected` or `already_collected`; `rows`: the rows that were stored; `windows`: the windows
        of the table that they are in.

    Raises:
        DataCollectionException: see `land` and `store_landing`; CONFIGURATION_ERROR, a window that is selected is not
            there, or the rows that are there were divided into windows in another way.
        DataProcessingException: see `store_landing`.
    """
    _check_division(table)
    of_files = isinstance(table.tool, FilesTool)
    is_over = _note_of(table, table.name, window.name)
    # A file is landed as a whole.
    asked = replace(window, since=None, until=None) if of_files else window
    landing = land(table, asked, is_over=is_over.exists() and not again)
    days = (window.since, window.until) if of_files else (None, None)
    done = store_landing(landing, table, days=days)
    _check_selected(table, landing, done)
    if table.is_dated and landing.is_final(window.until, SETTLE_TIME) and _has_parents(table, window):
        with writing(is_over, sync=False):
            pass
    known, given = done.status == "already_collected", done.rows + done.rejected
    new = done.added if table.settings.key else given
    windows = [name for name, is_wanted in done.windows.items() if is_wanted]
    return {
        "records_collected": new,
        "again": given - new,
        "status": "already_collected" if known and windows else "collected",
        "rows": done.rows,
        "windows": windows,
    }


def read_sample(table: ConfiguredTable) -> str:
    """Read the first rows of a table's source as a run would, and return in words what there is. The lake stays.

    Raises:
        DataCollectionException: see `find_windows`, `land` and `read_texts`.
        DataProcessingException: see `Loader`.
    """
    with TemporaryDirectory() as folder, connected(Path(folder)) as connection:
        aside, given = replace(table, lake=Path(folder)), table.of_files
        *_, window = find_windows(aside)
        is_whole = isinstance(table.tool, FilesTool) and not window.name.endswith(BY_LINE)
        if is_whole and window.size > MAX_WHOLE:
            return f"{window.name} is there, and too large to be tried"
        landing = land(aside, replace(window, is_sample=not is_whole))
        loader, fit = Loader(connection, table.schema, **given), 0
        for text in read_texts(landing, table.format, lambda _: None):
            # What comes after the first batch may be cut off.
            fit = next((loaded.rows.num_rows for loaded in loader.load(text)), 0)
            break
        loader.finish()
        column = table.schema.columns.get(table.cursor or "") if table.schema else None
        note = f"; the cursor {table.cursor} is a number: one that is too high shows in `pipeline status` alone"
        is_number = column is not None and column.kind in ("integer", "decimal", "float")
        return f"{fit:,} of the first {loader.rows:,} rows fit{note if is_number else ''}"


def rebuild_table(table: ConfiguredTable) -> dict[str, Any]:
    """Make a table anew from its landings, without asking the source: after a change of types, or of what divides it.

    Landings that it would not ask for any more are passed over, such as those of another file. If it is interrupted,
    call it again. A landing that cannot be stored keeps no other one away.

    Returns:
        `landings`: how many were read; `rows`, `rejected`: what they have given.

    Raises:
        DataCollectionException: as `store_landing` for the first landing that cannot be stored, after all others were;
            CONFIGURATION_ERROR, there is no landing, or DATA_ERROR, one is damaged: the table stays as it is.
        DataProcessingException: as `store_landing`, likewise.
    """
    # Rows that stay although they are gone at the source are in older ones.
    found = landings_of(table.lake, table.tool_name, table.name, replaced=table.raw.policy != "delete")
    landings = sorted(found, key=lambda each: each.manifest.started_at)
    if not landings and table.raw.any_file() is not None:
        raise configuration_error(f"{table}: no landing has its rows: restore one, or remove {table.raw.folder}")
    for landing in landings:
        check_content(landing)
    for layer in table.layers:
        with layer.exclusive():
            shutil.rmtree(layer.folder, ignore_errors=True)
            shutil.rmtree(layer.state / "landings", ignore_errors=True)
    _check_division(table)

    def store(landing: Landing) -> dict[str, Any]:
        done = store_landing(landing, table)
        return {"landings": 1, "rows": done.rows, "rejected": done.rejected, "status": done.status}

    landings = [each for each in landings if _is_asked_for(table, each.manifest.window.name)]
    done = do_each(landings, store, {"landings": 0, "rows": 0, "rejected": 0})
    for landing in done["failed"]:  # It raises its error.
        store(landing)
    return {name: done[name] for name in ("landings", "rows", "rejected")}


def _is_asked_for(table: ConfiguredTable, window: str) -> bool:
    """Return whether the source of a table, as it is configured now, may be asked for a window."""
    if isinstance(table.settings, FileTable):
        return table.is_pattern or window == escaped(table.settings.file.rpartition("/")[2])
    return (window != SINGLE_WINDOW) == table.is_dated


def _days(table: ConfiguredTable, first: date, end: date, today: date) -> list[Window]:
    """Return the days of a range that would not be removed again."""
    days = [first + timedelta(days=number) for number in range((end - first).days)]
    wanted = (each for each in days if table.wants(each.isoformat(), today))
    return [Window(name=str(day), since=_start(day), until=_start(day + timedelta(days=1))) for day in wanted]


def _late_days(table: ConfiguredTable, first: date, today: date) -> list[Window]:
    """Return the days before `first` that no run has collected after their end, since the first run."""
    note = _note_of(table, table.name, "since")
    if not note.exists():
        with writing(note) as file:
            file.write(first.isoformat().encode())
    days = _days(table, date.fromisoformat(note.read_text()), first, today)
    return [each for each in days if not note.with_name(each.name).exists()]


def _note_of(table: ConfiguredTable, name: str, day: str) -> Path:
    """Return the file that says that a table, of the same tool, was asked for a day after its end, and has stored it.

    `since` in place of a day: the file that has the first day that was ever asked for by a run of all that is new.
    """
    return table.lake / "landing" / table.tool_name / name / ".days" / day


def _has_parents(table: ConfiguredTable, window: Window) -> bool:
    """Return whether no parents of a day may still come, of which there may be objects."""
    if table.parent is None:
        return True
    parent = replace(table, name=table.parent)
    if parent.is_dated:
        return _note_of(table, table.parent, window.name).exists()
    known = find_landing(table.lake, table.tool_name, table.parent, Window())
    return known is not None and known.is_final(window.until, SETTLE_TIME) and _has_parents(parent, window)


def _check_division(table: ConfiguredTable) -> None:
    """Refuse to divide new rows in another way than those that are there: rows of both would be the same ones."""
    place, division = table.raw, repr((table.is_dated, table.is_pattern, *table.of_files.values()))
    note = place.state / "division"
    if note.exists() and note.read_text() == division:
        return
    if note.exists() and place.any_file() is not None:
        raise configuration_error(
            f"{table}: its rows in the lake are divided into other windows: undo the change of file, partition or "
            f"period, or make the table anew: executor-adapter pipeline rebuild {table.full_name}"
        )
    with writing(note) as file:
        file.write(division.encode())


def _check_selected(table: ConfiguredTable, landing: Landing, done: Collected) -> None:
    missing = [each for each in getattr(table.settings, "windows", None) or () if each not in done.windows]
    # Of several files each may have some of them.
    if missing and not table.is_pattern:
        said = f"the windows are {', '.join(sorted(done.windows))}"
        raise configuration_error(f"window {missing[0]!r} is not in {landing.files[0].origin}: {said}")


def _start(day: date | None) -> str | None:
    return None if day is None else datetime.combine(day, time(), UTC).isoformat()
