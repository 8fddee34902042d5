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
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.lake.writer import Writer
from executor_adapter.pipeline.schema import Caster
from executor_adapter.pipeline.sources.landing import Landing
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
    """Rows that were read and fit the schema."""
    rejected: int = 0
    """Rows with a value that does not fit its type, and lines that are not rows."""
    windows: tuple[str, ...] = ()
    """The windows that have rows of the landing."""


def store_landing(
    landing: Landing, read: Read, *, table: LakeTable, rejects: LakeTable, schema: TableSchema | None = None
) -> Collected:
    """Store the rows of a landing; each window of them is published by itself, completely or not at all.

    A landing that is stored already, with the same schema, is not read again.

    Args:
        landing: what was received.
        read: reads it, with `read_rows` and `divide`.
        table: where its rows go.
        rejects: where what is not a row, or does not fit the schema, goes.
        schema: the types of the columns; None: everything stays text.

    Raises:
        DataProcessingException: see `Caster.cast` and `LakeTable.writing`.
        DataCollectionException: CONFIGURATION_ERROR, there are more than `MAX_WINDOWS` windows, or two landings have
            rows of the same window and the table has no key by which they are merged.
    """
    made_of = [landing.manifest.content, None if schema is None else schema.model_dump(mode="json")]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    storing = _Storing(landing, table, rejects, schema, fingerprint=f"{digest} {landing.manifest.window.name}")
    marker = table.place.state / "landings" / f"{digest}.json"
    if marker.exists() and storing.has_all(json.loads(marker.read_bytes())):
        log("%s: the landing is stored already", table.place)
        return Collected(status="already_collected")
    collected = storing.store(read)
    with writing(marker) as file:
        file.write(json.dumps(collected.windows).encode())
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
        self._unreadable = 0

    def has_all(self, windows: Iterable[str]) -> bool:
        """Return whether the table has these windows as this landing made them."""
        found = self._table.windows()
        return all(each in found and found[each].fingerprint == self._fingerprint for each in windows)

    def store(self, read: Read) -> Collected:
        """Write everything, and publish it."""
        with self._stack:
            for name, batch in read(self._on_rejects):
                window = self._windows.get(name) or self._begin(name)
                window.add(batch)
                self._limit_waiting()
            for window in self._windows.values():
                window.caster.finish()
        casters = [window.caster for window in self._windows.values()]
        rejected = sum(caster.rejected for caster in casters)
        return Collected(
            status="collected",
            rows=sum(caster.rows for caster in casters) - rejected,
            rejected=rejected + self._unreadable,
            windows=tuple(self._windows),
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
        return self._stack.enter_context(
            table.writing(window, fingerprint=self._fingerprint, collected_at=self._asked_at)
        )

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
