"""Copies a table of the lake to a Delta table, wherever Delta can write: what has changed, each window in one commit.

The types are those of the lake, because Delta's own merge of schemas changes values: it made 2 of 2.5. Rows that were
collected again are merged in the lake, so Delta gets whole windows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from executor_adapter.config import redacted
from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import ConfigurationError, DataProcessingException
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake.evolution import evolved, fitted
from executor_adapter.pipeline.lake.footers import WindowEntry
from executor_adapter.pipeline.lake.layout import WINDOW
from executor_adapter.pipeline.lake.table import LakeTable

MAX_SHOWN = 500
"""Characters of an error of a store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What has become of a Delta table."""

    written: tuple[str, ...] = ()
    """The windows that were copied, because they are new or have changed."""
    removed: tuple[str, ...] = ()
    """The windows that were deleted, because the lake has them no longer."""
    changes: tuple[str, ...] = ()
    """How the columns changed."""


def publish_to_delta(table: LakeTable, uri: str, *, storage_options: Mapping[str, str] | None = None) -> Published:
    """Bring a Delta table to what a table of the lake has now; needs the extra `delta`.

    Let a job in a process do it: deltalake holds the interpreter while it waits for the store.

    The Delta table is partitioned by the column `window`. A window that it has as it is in the lake is not copied: the
    commits themselves say which ones it has. A column that the lake has widened rewrites the table, in one commit.

    Args:
        table: the table of the lake.
        uri: a folder, or s3://, gs:// or abfss:// with a path.
        storage_options: what the store needs, such as credentials: see deltalake.

    Raises:
        DataProcessingException: CONFIGURATION_ERROR, a column of the Delta table would be narrowed; LOCKED, somebody
            else wrote the same window, which is retried; or what the store refuses, see `error_codes`.
        ConfigurationError: deltalake is not installed.
    """
    with _explained(uri):
        lake_schema = table.schema()
        if lake_schema is None:
            return Published()
        # The state of the target is read before the windows are, so that what is written is never older than it.
        target = _Target(uri, lake_schema, dict(storage_options or {}))
        entries = table.windows()
        removed = target.windows() - set(entries)
        if target.is_widened:
            written = list(entries)
            everything = (batch for window in written for batch in _rows(table, window, target.schema))
            target.write(everything, entries, schema_mode="overwrite")
        else:
            written = [window for window, entry in entries.items() if not target.has(window, entry)]
            for window in written:
                rows = _rows(table, window, target.schema)
                target.write(rows, {window: entries[window]}, schema_mode="merge", predicate=_is(window))
            for window in removed:
                target.delete(window)
    log("%s: %d windows written, %d removed", uri, len(written), len(removed))
    return Published(written=tuple(written), removed=tuple(sorted(removed)), changes=tuple(target.changes))


class _Target:
    """The Delta table, which is made where it is missing."""

    def __init__(self, uri: str, lake: pa.Schema, storage_options: dict[str, str]) -> None:
        try:
            import deltalake
        except ImportError:
            raise ConfigurationError(
                "deltalake is not installed: pip install 'prefect-executor-adapter[delta]'"
            ) from None
        self._delta: Any = deltalake
        # A column that has no value yet has no type.
        typed = pa.schema([*(each for each in lake if not pa.types.is_null(each.type)), (WINDOW, pa.string())])
        self._table = deltalake.DeltaTable.create(
            uri, typed, mode="ignore", partition_by=[WINDOW], storage_options=storage_options
        )
        found = pa.schema(self._table.schema().to_arrow())
        self.schema, self.changes = evolved(found, typed)
        """The columns with those of the lake, and what changes."""
        self.is_widened = any(each.type != self.schema.field(each.name).type for each in found)
        """Whether a column has another type in the lake now."""
        for change in self.changes:
            log("%s: column %s", uri, change)

    def windows(self) -> set[str]:
        """Return the windows that have rows."""
        return {each[WINDOW] for each in self._table.partitions()}

    def has(self, window: str, entry: WindowEntry) -> bool:
        """Return whether the table has the window as the entry describes it."""
        return bool(self._table.transaction_version(_name(window)) == _version(entry))

    def write(self, rows: Iterator[pa.RecordBatch], entries: Mapping[str, WindowEntry], **how: str) -> None:
        """Put the rows of windows in the place of all those that the predicate means, in one commit."""
        known = [self._delta.Transaction(_name(window), _version(entry)) for window, entry in entries.items()]
        self._delta.write_deltalake(
            self._table,
            pa.RecordBatchReader.from_batches(self.schema, rows),
            mode="overwrite",
            commit_properties=self._delta.CommitProperties(app_transactions=known),
            **how,
        )
        self._table.update_incremental()

    def delete(self, window: str) -> None:
        """Delete the rows of a window."""
        self._table.delete(_is(window))


def _rows(table: LakeTable, window: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with table.reading(window) as batches:
        for batch in batches:
            rows = pa.Table.from_batches([batch])
            rows = rows.append_column(WINDOW, pa.repeat(pa.scalar(window), rows.num_rows))
            yield from fitted(rows, schema).to_batches()


def _is(window: str) -> str:
    return f"{WINDOW} = '" + window.replace("'", "''") + "'"


def _name(window: str) -> str:
    return f"executor_adapter {window}"


def _version(entry: WindowEntry) -> int:
    changed_at = max(datetime.fromisoformat(each) for each in (entry.written_at, entry.vanished_at) if each)
    return int(changed_at.timestamp() * 1_000_000)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except (ConfigurationError, DataProcessingException):
        raise
    except Exception as error:
        code = "LOCKED" if type(error).__name__ == "CommitFailedError" else error_code_of(error)
        # Its errors have a line for each cause, and colours.
        lines = [re.sub(r"\x1b\[[0-9;]*m|↳", "", line).strip() for line in str(error).splitlines()]
        said = redacted(f"{uri}: {': '.join(filter(None, lines))}")
        raise DataProcessingException(said[:MAX_SHOWN], error_code=code, processing_stage="lake") from None
