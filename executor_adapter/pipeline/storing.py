"""Stores what was landed: rows of text, divided into windows, become typed rows of a table in one pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from executor_adapter.config import FilesTool, Format
from executor_adapter.pipeline.disk import TEMPORARY, digest_of, writing
from executor_adapter.pipeline.errors import configuration_error
from executor_adapter.pipeline.job_log import log, progress
from executor_adapter.pipeline.lake.table import LakeTable, Writer, is_between, remove_windows
from executor_adapter.pipeline.loading import Loader, by_window
from executor_adapter.pipeline.sources.landing import SINGLE_WINDOW, Landing, Window
from executor_adapter.pipeline.sources.reading import check_content, read_texts
from executor_adapter.pipeline.sources.unpacking import MAX_UNPACKED
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.text_rows import READ, REJECTED, Text, connected

MAX_WAITING = 500_000
"""Rows of several windows that wait in memory, at most."""


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
    windows: dict[str, bool] = field(default_factory=dict)
    """The windows that the landing has rows of, and whether each is wanted: others were passed over."""


def store_landing(
    landing: Landing, table: ConfiguredTable, *, days: tuple[str | None, str | None] = (None, None)
) -> Collected:
    """Store the rows of a landing; each window of them is published by itself, completely or not at all.

    A landing that is stored already, read and typed in the same way, is not read again; of one that is stored in part,
    those windows are stored that are missing. Its rejects are a window of their own: when it is put right, they go.

    Args:
        landing: what was received.
        table: where its rows go, by windows that its settings want.
        days: the range of days whose windows are stored: see `is_between`.

    Raises:
        DataProcessingException: see `Loader.load` and `LakeTable.writing`.
        DataCollectionException: see `read_texts`; CONFIGURATION_ERROR, two landings have rows of the same window and
            the table has no key by which they are merged.
    """
    schema, divided, source = table.schema, table.of_files, landing.manifest.window.name
    types = None if schema is None else schema.model_dump(mode="json")
    made_of = [landing.manifest.content, types, divided, table.format.model_dump(include={*Format.model_fields})]
    digest = digest_of(*made_of, table.row_key)
    marker, before = stored_before(table, source)
    today = datetime.now(UTC).date()

    def wanted(window: str) -> bool:
        return table.wants(window, today) and is_between(window, *days)

    storing = _Storing(landing, table, fingerprint=f"{digest} {source}", wanted=wanted)
    # Of an older content of the same file some rows may be there: what came between has replaced others.
    known = storing.known = before.get("windows", {}) if before.get("digest") == digest else {}
    if before.get("digest") == digest and all(map(storing.has, filter(wanted, known))):
        log("%s: the landing is stored already", table.raw)
        marker.touch()  # Its time says when the source was last asked.
        return Collected(status="already_collected", windows={name: wanted(name) for name in known})
    if not landing.is_new:
        check_content(landing)
    with connected(landing.folder / f"{TEMPORARY}duckdb") as connection:
        name = landing.files[0].origin if len(landing.files) == 1 else source
        loader = Loader(connection, schema, **divided, delivery=name, key=table.row_key, on_rejects=storing.reject)
        max_bytes = getattr(table.tool, "max_bytes", MAX_UNPACKED)
        texts = read_texts(landing, table.format, storing.reject, max_bytes)
        # Of several files each is a window, where nothing divides them.
        is_one_file = isinstance(table.tool, FilesTool) and not table.is_pattern
        window = SINGLE_WINDOW if is_one_file else source
        collected = storing.store(loader, texts, None if divided.get("partition") else window, marker)
    if not collected.rejected and not table.unfit.key:
        remove_windows(table.unfit, [READ + source])  # Those of the delivery before go.
    with writing(marker, sync=False) as file:
        file.write(json.dumps({"digest": digest, "windows": storing.created()}).encode())
    log("%s: %d rows stored, %d rejected", table.raw, collected.rows, collected.rejected)
    return collected


def stored_before(table: ConfiguredTable, source: str) -> tuple[Path, dict[str, Any]]:
    """Return the file that says what was last stored of a window of the source, and what it says: `digest`, `windows`.

    These are the windows of the table that it had rows of, also those that are not wanted.
    """
    marker = table.raw.state / "landings" / f"{digest_of(source)}.json"
    with suppress(FileNotFoundError, ValueError):  # A power cut may leave an empty one.
        return marker, json.loads(marker.read_bytes())
    return marker, {}


class _Storing:
    """Writes the windows of one landing."""

    def __init__(
        self, landing: Landing, table: ConfiguredTable, fingerprint: str, wanted: Callable[[str], bool]
    ) -> None:
        self._landing, self._rejects, self._is_shared = landing, table.unfit, table.is_pattern
        # Of another column the landing does not say up to where all was asked for.
        self._table = replace(table.raw, cursor=table.cursor and (landing.manifest.window.cursor or table.cursor))
        self._fingerprint, self._wanted = fingerprint, wanted
        self._asked_at = datetime.fromisoformat(landing.manifest.started_at)
        self._stack, self._aside = ExitStack(), ExitStack()
        self._writers: dict[str, Writer] = {}
        self.known: dict[str, str] = {}
        """The windows that were stored of the same landing, and when each of them was made for the first time."""
        self._found: dict[str, bool] = {}
        self._reject_writer: Writer | None = None
        self._wrong = list[pa.Array]()
        """The keys of what is rejected, of a table with a cursor."""
        self._rejected = self._stored = self._spilled = 0

    def has(self, window: str) -> bool:
        """Return whether a window of the table is as this landing made it, or was merged into it."""
        if (found := self._table.find(window)) is None:
            return False
        if self._table.policy == "keep" and self._table.key:
            return self.known.get(window) == found.created_at
        return found.fingerprint == self._fingerprint

    def created(self) -> dict[str, str]:
        """Return the windows of the landing's rows, and when each window that got them was made for the first time."""
        # A window that was passed over may be there, with the rows of other landings alone.
        found = {name: self._table.find(name) if wanted else None for name, wanted in self._found.items()}
        return {name: entry.created_at if entry else self.known.get(name, "") for name, entry in found.items()}

    def store(self, loader: Loader, texts: Iterable[Text], window: str | None, marker: Path) -> Collected:
        """Write what is wanted, and publish it; `window` is that of all rows, None where they are divided.

        `marker` is removed before: what was stored before is not there any more where only a part is published.
        """
        with self._aside, self._stack:  # Rows that are refused leave no rejects either.
            for text in texts:
                for loaded in loader.load(text):
                    for name, rows in by_window(loaded) if window is None else [(window, loaded.rows)]:
                        self._add(name, rows)
                    progress(loader.rows, None, "rows")
            loader.finish()
            if window is not None and not self._found:
                self._empty(window)
            if self._rejects.key and self._rejects.find(READ + self._landing.manifest.window.name):
                self.reject(pa.RecordBatch.from_pylist([], REJECTED))
            if self._rejects.key and self._reject_writer is not None:  # What came now is not wrong any more as it was.
                self._reject_writer.gone = [keys for writer in self._writers.values() for keys in writer.keys]
                self._reject_writer.overtaken = [writer.newer_keys() for writer in self._writers.values()]
            marker.unlink(missing_ok=True)
        added = sum(writer.added for writer in self._writers.values())
        return Collected(
            status="collected",
            rows=self._stored,
            rejected=self._rejected,
            added=added + (self._reject_writer.added if self._reject_writer else 0),
            windows=self._found,
        )

    def _empty(self, window: str) -> None:
        """Empty a window of which the source has no row any more, or note that it is there, where its rows stay."""
        if self._table.find(window) is not None and (schema := self._table.schema()) is not None:
            if self._table.policy == "keep" and not self._wrong:
                self._found[window] = self._wanted(window)
                return
            names = [name for name in schema.names if name not in self._table.extra_columns.names]
            self._add(window, pa.RecordBatch.from_pylist([], pa.schema([schema.field(name) for name in names])))

    def _add(self, name: str, rows: pa.RecordBatch) -> None:
        if name not in self._found:
            self._found[name] = self._wanted(name)
            if self._found[name] and not self.has(name):
                if self._is_shared:
                    self._check_origin(name)
                self._writers[name] = self._writer(self._table, name)
                self._writers[name].gone = self._wrong  # What is wrong now does not stay as it was.
        if (writer := self._writers.get(name)) is None:
            return
        writer.add(rows)
        self._stored += rows.num_rows
        if len(self._writers) > 1 and self._stored - self._spilled > MAX_WAITING:
            for each in self._writers.values():
                each.spill()
            self._spilled = self._stored

    def _writer(self, table: LakeTable, window: str) -> Writer:
        asked = self._landing.manifest.window if table.cursor is not None else Window()
        writing = table.writing(
            window,
            fingerprint=self._fingerprint,
            collected_at=self._asked_at,
            since=asked.since,
            until=asked.until,
            # Of a part of a window the rejects are beside those of the other parts, whichever was asked for first.
            origin=self._fingerprint if table is self._rejects and table.key else self._landing.manifest.window.name,
        )
        return (self._aside if table is self._rejects else self._stack).enter_context(writing)

    def _check_origin(self, name: str) -> None:
        found = self._table.find(name)
        if found is None or self._table.policy == "keep":
            return
        origin, own = found.fingerprint.partition(" ")[2], self._landing.manifest.window.name
        if origin != own:
            said = f"window {name} has rows of {origin!r} already, which would be replaced by those of {own!r}"
            raise configuration_error(f"{self._table}: {said}: set key, or leave out partition")

    def reject(self, rejects: pa.RecordBatch) -> None:
        """Put aside what is not a row, or does not fit."""
        if self._reject_writer is None:
            self._reject_writer = self._writer(self._rejects, READ + self._landing.manifest.window.name)
        self._reject_writer.add(rejects)
        self._wrong += [rejects["key"]] if self._rejects.key else []
        self._rejected += rejects.num_rows
