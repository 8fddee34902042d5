"""Processes a window: stages over its rows, some at a time; what comes out, and the rejects, go into the lake."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import pyarrow as pa

from executor_adapter.pipeline.job_log import log, progress
from executor_adapter.pipeline.lake.footers import WindowEntry
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.lake.writer import Writer
from executor_adapter.pipeline.stages.aggregate import Aggregate
from executor_adapter.pipeline.stages.base import Account, NamedStage
from executor_adapter.pipeline.stages.loading import Spec, load_stage

STAGE_REJECTS = pa.schema([("row", pa.int64()), ("stage", pa.string()), ("reason", pa.string()), ("text", pa.string())])
"""The columns of rejects: the number of the row in its window (counted from 1), the stage, everything that is wrong,
and the row as the stage was given it, as JSON."""

MAX_LOGGED_REASONS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Processed:
    """What has become of the rows of a window."""

    status: Literal["processed", "already_processed"]
    given: int = 0
    kept: int = 0
    rejected: int = 0
    dropped: int = 0
    reasons: tuple[tuple[str, int], ...] = ()
    """The most frequent reasons for which rows were rejected or dropped, with their numbers."""


def process_window(
    source: LakeTable,
    window: str,
    *,
    stages: Sequence[Spec],
    target: LakeTable,
    rejects: LakeTable,
    aggregate: Aggregate | None = None,
    aggregates: LakeTable | None = None,
    batch_size: int = 50_000,
    version: str = "",
) -> Processed:
    """Write what the stages make of a window, with `batch_size` rows in memory at a time. The body of a job.

    A window that the same stages made of the same rows already stays as it is.

    Args:
        source: the table that is read.
        window: its window.
        stages: the stages, in their order: see `load_stage`.
        target: the table of the rows that went through.
        rejects: the table of the rejects, with the columns of `STAGE_REJECTS`.
        aggregate: measures of the rows that went through.
        aggregates: the table of the measures.
        batch_size: rows that the stages are given at a time.
        version: a change of it lets windows be processed again, as when the code of a stage has changed.

    Raises:
        DataProcessingException: DATA_ERROR, the window is not there or does not fit; CONFIGURATION_ERROR, a stage
            returns what it must not; PROCESSING_ERROR, rows were lost.
        ConfigurationError: there is no such stage.
    """
    ready = [load_stage(spec, source.root) for spec in stages]
    entry = source.find(window)
    fingerprint = processing_fingerprint(entry, stages, version)
    if target.find(window, fingerprint) is not None:
        log("%s %s: already processed", target.place, window)
        return Processed(status="already_processed")
    run = _Run(ready)
    with source.reading(window, batch_size) as batches, ExitStack() as stack:
        # The stack closes in reverse order: the rows, which make the window processed, are published last.
        rows = stack.enter_context(target.writing(window, fingerprint=fingerprint))
        put_aside = stack.enter_context(rejects.writing(window, fingerprint=fingerprint))
        for batch in batches:
            kept, rejected = run.process(batch)
            rows.add(kept)
            put_aside.add(rejected)
            if aggregate is not None:
                aggregate.add(kept)
            progress(run.account.given, None if entry is None else entry.rows, "rows")
        if aggregate is not None and aggregates is not None:
            _write(aggregate, stack.enter_context(aggregates.writing(window, fingerprint=fingerprint)))
        run.account.check()
        rows.dropped = run.account.dropped.total()
    return _told(run.account, f"{target.place} {window}")


def processing_fingerprint(entry: WindowEntry | None, stages: Sequence[Spec], version: str = "") -> str:
    """Return the fingerprint of what the stages make of a window, as `process_window` writes it."""
    made_of = [entry and entry.fingerprint, entry and entry.collected_at, entry and entry.vanished_at]
    return hashlib.sha256(json.dumps([*made_of, list(stages), version], default=str).encode()).hexdigest()


class _Run:
    """Applies the stages to the batches of one window."""

    def __init__(self, stages: Iterable[NamedStage]) -> None:
        self._stages = list(stages)
        self.account = Account()

    def process(self, batch: pa.RecordBatch) -> tuple[pa.Table, pa.Table]:
        """Return the rows that went through all stages, and the rejects."""
        # Labels begin at 1, so that a stage that makes an index of its own is noticed.
        first = self.account.given + 1
        labels = pd.RangeIndex(first, first + batch.num_rows)
        rows = pa.Table.from_batches([batch]).to_pandas(types_mapper=pd.ArrowDtype).set_axis(labels)
        self.account.given += len(rows)
        rejects = []
        for stage in self._stages:
            output = stage(rows)
            rejects += list(_rejects(rows, output.rejected, stage.name))
            self.account.rejected.update(output.rejected.tolist())
            self.account.dropped.update(output.dropped.tolist())
            rows = output.rows
        self.account.kept += len(rows)
        return pa.Table.from_pandas(rows, preserve_index=False), pa.Table.from_pylist(rejects, schema=STAGE_REJECTS)


def _rejects(rows: pd.DataFrame, reasons: pd.Series, stage: str) -> Iterator[dict[str, Any]]:
    if len(reasons):
        records = rows.loc[reasons.index].to_dict("records")
        for label, reason, record in zip(reasons.index, reasons, records, strict=True):
            text = json.dumps({str(name): _plain(value) for name, value in record.items()}, ensure_ascii=False)
            yield {"row": int(label), "stage": stage, "reason": str(reason), "text": text}


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    return value if isinstance(value, str | int | float | bool) and value == value else str(value)


def _write(aggregate: Aggregate, writer: Writer) -> None:
    found = aggregate.result()
    if found is not None:
        writer.add(found)


def _told(account: Account, subject: str) -> Processed:
    rejected, dropped = account.rejected.total(), account.dropped.total()
    log("%s: %d rows kept, %d rejected, %d dropped", subject, account.kept, rejected, dropped)
    reasons = Counter(account.rejected) + Counter(account.dropped)
    for reason, rows in reasons.most_common(MAX_LOGGED_REASONS):
        log("%d rows: %s", rows, reason)
    return Processed(
        status="processed",
        given=account.given,
        kept=account.kept,
        rejected=rejected,
        dropped=dropped,
        reasons=tuple(reasons.most_common(MAX_LOGGED_REASONS)),
    )
