"""Processes a configured table, window by window, and accounts for its rows in the files of the lake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from executor_adapter.pipeline.lake.footers import WindowEntry
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.stages.run import process_window, processing_fingerprint
from executor_adapter.pipeline.tables import ConfiguredTable

REASON = "reason"


def process_table(table: ConfiguredTable, window: str, batch_size: int) -> dict[str, Any]:
    """Send a raw window through the table's stages; one that they have processed already stays. The body of a job.

    Returns:
        `records_processed`: rows that went through; `status`: `processed` or `already_processed`; `rejected`.

    Raises:
        DataProcessingException: see `process_window`.
        ConfigurationError: a stage cannot be loaded.
    """
    done = process_window(
        table.raw,
        window,
        stages=table.stages,
        target=table.processed,
        rejects=table.rejects,
        aggregate=table.aggregate(),
        aggregates=table.aggregates,
        batch_size=batch_size,
        version=table.version,
    )
    return {"records_processed": done.kept, "status": done.status, "rejected": done.rejected}


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The number of a tool's rows by where they are now: counted in the files, whatever jobs have reported."""

    tool: str
    collected: int = 0
    processed: int = 0
    rejected: int = 0
    """Rows that a stage has rejected, or that did not fit their types."""
    dropped: int = 0
    """Rows that a stage has left out on purpose."""
    unprocessed: int = 0
    """Rows of windows whose processing did not succeed."""

    @property
    def holds(self) -> bool:
        """Whether every collected row is accounted for."""
        return self.collected == self.processed + self.rejected + self.dropped + self.unprocessed

    def __str__(self) -> str:
        dropped = f" + {self.dropped:,} dropped" if self.dropped else ""
        rest = f" + {self.unprocessed:,} not processed" if self.unprocessed else ""
        sign = "=" if self.holds else "≠"
        return (
            f"{self.tool}: {self.collected:,} collected {sign} "
            f"{self.processed:,} processed + {self.rejected:,} rejected{dropped}{rest}"
        )


def balance(tool: str, tables: Iterable[ConfiguredTable]) -> Balance:
    """Count the rows of a tool's tables."""
    counts: Counter[str] = Counter()
    for table in tables:
        unfit = sum(entry.rows for entry in table.unfit.windows().values())
        counts.update(collected=unfit, rejected=unfit)
        processed, rejects = table.processed.windows(), table.rejects.windows()
        for window, entry in table.raw.windows().items():
            counts["collected"] += entry.rows
            if not entry.rows:
                continue
            done = processed.get(window)
            if not _is_made_of(table, done, entry):
                counts["unprocessed"] += entry.rows
                continue
            assert done is not None
            counts.update(processed=done.rows, dropped=done.dropped)
            put_aside = rejects.get(window)
            counts["rejected"] += put_aside.rows if _is_made_of(table, put_aside, entry) and put_aside else 0
    return Balance(tool=tool, **counts)


def reject_reasons(tables: Iterable[ConfiguredTable]) -> Counter[tuple[str, str]]:
    """Count rejected rows by table and reason."""
    found: Counter[tuple[str, str]] = Counter()
    for table in tables:
        raw = table.raw.windows()
        for window in table.unfit.windows():
            _count(found, table, table.unfit, window)
        for window, entry in table.rejects.windows().items():
            if entry.rows and window in raw and _is_made_of(table, entry, raw[window]):
                _count(found, table, table.rejects, window)
    return found


def _is_made_of(table: ConfiguredTable, made: WindowEntry | None, raw: WindowEntry) -> bool:
    return made is not None and made.fingerprint == processing_fingerprint(raw, table.stages, table.version)


def _count(found: Counter[tuple[str, str]], table: ConfiguredTable, rejects: LakeTable, window: str) -> None:
    with rejects.reading(window) as batches:
        for batch in batches:
            found.update((table.name, str(reason)) for reason in batch[REASON].to_pylist())
