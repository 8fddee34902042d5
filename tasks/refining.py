"""Processing: validates, normalises and aggregates a raw partition in batches. Plain functions; the body of a job.

Rows are conserved: the number of rows read from a partition equals the number kept plus the number rejected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from executor_adapter.exceptions import DataProcessingException
from tasks import lake, row_balance, rules, stages
from tasks.job_log import log, progress

Result = dict[str, Any]

MAX_LOGGED_REASONS = 10

_OUTPUT_LAYERS: tuple[lake.Layer, ...] = ("processed", "rejects", "aggregates")


def process_partition(raw: lake.Partition, schema: str | None, batch_size: int) -> Result:
    """Write the processed, rejects and aggregates partitions of a raw one, with `batch_size` rows in memory at a time.

    `schema` names the rules; without rules every row passes unchanged. A partition that the same rules already made
    from the same rows is kept: `{"records_processed": 0, "status": "already_processed", "rows": n}`.

    Raises:
        DataProcessingException: DATA_ERROR, the partition is incomplete or lacks a column; PROCESSING_ERROR, rows
            were lost.
    """
    fingerprint = row_balance.fingerprint(raw, schema)
    processed = raw.in_layer("processed")
    existing = lake.find_manifest(processed, fingerprint)
    if existing is not None:
        log("%s: %d rows, already processed", processed, existing.rows)
        return _result("already_processed", 0, existing.rows, lake.count_rows(raw.in_layer("rejects")))
    processor = _BatchProcessor(None if schema is None else rules.load(schema))
    with lake.reading(raw) as file, ExitStack() as stack:
        # The stack closes in reverse order, so the processed partition, which makes all three valid, is published last.
        to_processed, to_rejects, to_aggregates = (
            stack.enter_context(lake.writing(raw.in_layer(layer), fingerprint=fingerprint)) for layer in _OUTPUT_LAYERS
        )
        for rows in _batches(file, batch_size):
            good, rejects = processor.process(rows)
            to_processed.add(_table(good))
            to_rejects.add(_table(rejects))
            progress(processor.kept + processor.rejected, file.metadata.num_rows, "rows")
        to_aggregates.add(_table(processor.measures()))
        _check_conserved(raw, file.metadata.num_rows, processor)
    log("%s: %d rows kept, %d rejected", processed, processor.kept, processor.rejected)
    for reason, rows_rejected in processor.reasons.most_common(MAX_LOGGED_REASONS):
        log("%d rejected: %s", rows_rejected, reason)
    return _result("success", processor.kept, processor.kept, processor.rejected)


class _BatchProcessor:
    """Applies the stages to the batches of one partition and counts the rows."""

    def __init__(self, table_rules: rules.Rules | None) -> None:
        self._rules = table_rules
        self._seen_keys: set[int] = set()
        self._measures: list[pd.DataFrame] = []
        self.kept = self.rejected = 0
        self.reasons: Counter[str] = Counter()

    def process(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the normalised rows to keep, and the rejects with their row number and the reason."""
        if self._rules is None or not len(rows.columns):
            good, rejects = rows, rows.iloc[:0].assign(**{stages.REASON: ""})
        else:
            good, rejects = stages.validate(rows, self._rules, self._seen_keys)
            good = self._rules.normalise(good)
            self._measures.append(stages.aggregate(good, self._rules))
        self.kept += len(good)
        self.rejected += len(rejects)
        self.reasons.update(rejects[stages.REASON])
        return good, rejects.rename_axis("row").reset_index()

    def measures(self) -> pd.DataFrame:
        """Return the measures of all batches; without rules, only the number of rows."""
        if self._rules is None or not self._measures:
            return pd.DataFrame({"rows": [self.kept]})
        return stages.combine(self._measures, self._rules)


def _batches(file: pq.ParquetFile, batch_size: int) -> Iterator[pd.DataFrame]:
    """Yield the rows in batches, indexed by row number; one empty batch if there are none, to keep the columns."""
    start = 0
    for batch in file.iter_batches(batch_size):
        yield _frame(pa.Table.from_batches([batch]), start)
        start += batch.num_rows
    if start == 0:
        yield _frame(file.schema_arrow.empty_table(), 0)


def _frame(table: pa.Table, start: int) -> pd.DataFrame:
    # Arrow's own types keep rejects exactly as they were read.
    rows: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return rows.set_axis(pd.RangeIndex(start, start + len(rows)))


def _table(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata()


def _check_conserved(raw: lake.Partition, rows: int, processor: _BatchProcessor) -> None:
    if rows != processor.kept + processor.rejected:
        raise DataProcessingException(
            f"{raw}: {rows} rows were read, but {processor.kept} processed and {processor.rejected} rejected",
            processing_stage="conservation",
        )


def _result(status: str, new: int, kept: int, rejected: int) -> Result:
    return {"records_processed": new, "status": status, "rows": kept, "rejected": rejected}
