"""Stores what was landed: rows of text, divided into windows, become typed rows of a table in one pass."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import pyarrow as pa

from executor_adapter.config import TableSchema
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import writing
from executor_adapter.pipeline.job_log import log, progress
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.lake.writer import Writer
from executor_adapter.pipeline.schema import Caster
from executor_adapter.pipeline.sources.landing import Landing
from executor_adapter.pipeline.sources.windows import Window
from executor_adapter.pipeline.text_rows import OnRejects

MAX_WINDOWS = 200
"""Windows that one landing is divided into, at most: each has two open files."""
MAX_WAITING = 500_000
"""Rows of all windows that wait in memory, at most."""

Read = Callable[[OnRejects], Iterable[tuple[str, pa.RecordBatch]]]
"""Reads a landing: yields rows of text with the window that they belong to, and gives the rejects to its argument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What has become of the rows of a landing."""

    status: Literal["collected", "already_collected"]
    rows: int = 0
    """Rows that were stored now; windows that the table had of this landing already are passed over."""
    rejected: int = 0
    """Rows with a value that does not fit its type, and lines that are not rows."""
    added: int = 0
    """Rows and rejects that the tables did not have."""
    windows: tuple[str, ...] = ()
    """The windows that have rows of the landing."""
    unwanted: tuple[str, ...] = ()
    """The windows of the landing that were passed over."""


def store_landing(
    landing: Landing,
    read: Read,
    *,
    table: LakeTable,
    rejects: LakeTable,
    schema: TableSchema | None = None,
    version: str = "",
    wanted: Callable[[str], bool] = lambda window: True,
) -> Collected:
    """Store the rows of a landing; each window of them is published by itself, completely or not at all.

    A landing that is stored already, with the same schema, is not read again; of one that is stored in part, those
    windows are stored that are missing.

    Args:
        landing: what was received.
        read: reads it, with `read_rows` and `divide`.
        table: where its rows go.
        rejects: where what is not a row, or does not fit the schema, goes.
        schema: the types of the columns; None: everything stays text.
        version: a change of it lets the landing be stored again, as when the settings have changed by which it is read.
        wanted: whether a window is to be stored; rows of others are passed over.

    Raises:
        DataProcessingException: see `Caster.cast` and `LakeTable.writing`.
        DataCollectionException: CONFIGURATION_ERROR, there are more than `MAX_WINDOWS` windows, or two landings have
            rows of the same window and the table has no key by which they are merged.
    """
    made_of = [landing.manifest.content, None if schema is None else schema.model_dump(mode="json"), version]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    storing = _Storing(landing, table, rejects, schema, fingerprint=f"{digest} {landing.manifest.window.name}")
    marker = table.place.state / "landings" / f"{digest}.json"
    known = tuple(json.loads(marker.read_bytes())) if marker.exists() else None
    if known is not None and storing.has_all(filter(wanted, known)):
        log("%s: the landing is stored already", table.place)
        windows, unwanted = _divided({name: wanted(name) for name in known})
        return Collected(status="already_collected", windows=windows, unwanted=unwanted)
    collected = storing.store(read, wanted)
    with writing(marker) as file:
        file.write(json.dumps(list(storing.found)).encode())
    log("%s: %d rows stored, %d rejected", table.place, collected.rows, collected.rejected)
    return collected


class _Storing:
    """Writes the windows of one landing."""

    def __init__(
        self, landing: Landing, table: LakeTable, rejects: LakeTable, schema: TableSchema | None, fingerprint: str
    ) -> None:
        self._landing, self._table, self._rejects, self._schema = landing, table, rejects, schema
        self._fingerprint = fingerprint
        self._asked_at = datetime.fromisoformat(landing.manifest.started_at)
        self._stack = ExitStack()
        self._windows: dict[str, _Window] = {}
        self._writers: list[Writer] = []
        self._before = table.windows()
        self.found: dict[str, bool] = {}
        """The windows that the landing has rows of, and whether they are wanted."""
        self._unreadable = 0

    def has_all(self, windows: Iterable[str]) -> bool:
        """Return whether the table has these windows as this landing made them."""
        return all(map(self._has, windows))

    def _has(self, window: str) -> bool:
        found = self._before.get(window)
        return found is not None and found.fingerprint == self._fingerprint

    def store(self, read: Read, wanted: Callable[[str], bool]) -> Collected:
        """Write what is wanted, and publish it."""
        with self._stack:
            for name, batch in read(self._on_rejects):
                if name not in self.found:
                    self.found[name] = wanted(name)
                if not self.found[name] or self._has(name):
                    continue
                window = self._windows.get(name) or self._begin(name)
                window.add(batch)
                self._limit_waiting()
                progress(sum(each.caster.rows for each in self._windows.values()), None, "rows")
            for window in self._windows.values():
                window.caster.finish()
        casters = [window.caster for window in self._windows.values()]
        rejected = sum(caster.rejected for caster in casters)
        windows, unwanted = _divided(self.found)
        return Collected(
            status="collected",
            rows=sum(caster.rows for caster in casters) - rejected,
            rejected=rejected + self._unreadable,
            added=sum(writer.result.added for writer in self._writers),
            windows=windows,
            unwanted=unwanted,
        )

    def _begin(self, name: str) -> _Window:
        if len(self._windows) >= MAX_WINDOWS:
            raise self._refusal(f"more than {MAX_WINDOWS} windows: set period, or divide by another column")
        self._check_origin(name)
        # The stack closes in reverse order, so the rejects of a window are there before its rows.
        rows, rejects = self._writer(self._table, name), self._writer(self._rejects, name)
        self._windows[name] = _Window(Caster(self._schema), rows, rejects)
        return self._windows[name]

    def _writer(self, table: LakeTable, window: str) -> Writer:
        asked = self._landing.manifest.window if table.cursor is not None else Window()
        writing = table.writing(
            window,
            fingerprint=self._fingerprint,
            collected_at=self._asked_at,
            since=asked.since,
            until=asked.until,
        )
        self._writers.append(self._stack.enter_context(writing))
        return self._writers[-1]

    def _check_origin(self, name: str) -> None:
        found = self._table.find(name)
        if found is None or self._table.policy == "keep":
            return
        origin = found.fingerprint.partition(" ")[2]
        if origin != self._landing.manifest.window.name:
            raise self._refusal(
                f"window {name} has rows of {origin!r} already, which would be replaced by those of "
                f"{self._landing.manifest.window.name!r}: name the key of the table, so that they are merged"
            )

    def _on_rejects(self, rejects: pa.RecordBatch) -> None:
        name = f"unreadable {self._landing.manifest.window.name}"
        if not self._unreadable:
            self._unreadable_rows = self._writer(self._rejects, name)
        self._unreadable_rows.add(rejects)
        self._unreadable += rejects.num_rows

    def _limit_waiting(self) -> None:
        if sum(window.rows.waiting for window in self._windows.values()) > MAX_WAITING:
            max(self._windows.values(), key=lambda window: window.rows.waiting).rows.flush()

    def _refusal(self, message: str) -> DataCollectionException:
        return DataCollectionException(f"{self._table.place}: {message}", error_code="CONFIGURATION_ERROR")


def _divided(found: dict[str, bool]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the windows that are wanted, and the others."""
    wanted = tuple(name for name, is_wanted in found.items() if is_wanted)
    return wanted, tuple(name for name in found if name not in wanted)


@dataclass(frozen=True, slots=True)
class _Window:
    """One window that is being written."""

    caster: Caster
    rows: Writer
    rejects: Writer

    def add(self, batch: pa.RecordBatch) -> None:
        """Cast and write a batch."""
        cast = self.caster.cast(batch)
        self.rows.add(cast.rows)
        self.rejects.add(cast.rejects)
