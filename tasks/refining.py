"""Processing: a raw partition validated, normalised and aggregated, batch by batch. Plain functions, bodies of jobs.

Rows are conserved: of each partition as many are read as are kept and rejected together.
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

SHOWN_REASONS = 10


def process_partition(raw: lake.Partition, schema: str | None, batch_size: int) -> Result:
    """Make the processed, rejects and aggregates partitions of a raw one, `batch_size` rows in memory at a time.

    `schema` names the rules; without, every row passes as it is. What was made of the same rows by the same rules is
    left as it is: `{"records_processed": 0, "status": "already_processed", "rows": n}`.

    Raises:
        DataProcessingException: DATA_ERROR, the partition is not complete or lacks a column; PROCESSING_ERROR, rows
            got lost.
    """
    made_of = row_balance.fingerprint(raw, schema)
    processed = raw.at("processed")
    done = lake.complete(processed, made_of)
    if done is not None:
        log("%s: %d rows, processed before", processed, done.rows)
        return _result("already_processed", 0, done.rows, lake.count(raw.at("rejects")))
    with lake.reading(raw) as file, ExitStack() as stack:
        # The processed partition is published last: while it is not, none of the three counts.
        to_processed = stack.enter_context(lake.writing(processed, fingerprint=made_of))
        to_rejects = stack.enter_context(lake.writing(raw.at("rejects"), fingerprint=made_of))
        to_aggregates = stack.enter_context(lake.writing(raw.at("aggregates"), fingerprint=made_of))
        refinery = _Refinery(None if schema is None else rules.load(schema))
        for rows in _batches(file, batch_size):
            good, rejects = refinery.refine(rows)
            to_processed.add(_table(good))
            to_rejects.add(_table(rejects))
            progress(refinery.kept + refinery.rejected, file.metadata.num_rows, "rows")
        to_aggregates.add(_table(refinery.measures()))
        _check_conserved(raw, file.metadata.num_rows, refinery)
    log("%s: %d rows kept, %d rejected", processed, refinery.kept, refinery.rejected)
    for reason, rows_rejected in refinery.reasons.most_common(SHOWN_REASONS):
        log("%d rejected: %s", rows_rejected, reason)
    return _result("success", refinery.kept, refinery.kept, refinery.rejected)


class _Refinery:
    """Takes the batches of one partition through the stages, and keeps count."""

    def __init__(self, by: rules.Rules | None) -> None:
        self._rules = by
        self._seen: set[int] = set()
        self._measures: list[pd.DataFrame] = []
        self.kept = self.rejected = 0
        self.reasons: Counter[str] = Counter()

    def refine(self, rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The rows to keep, normalised, and the rejects, with the number of their row and the reason."""
        if self._rules is None or not len(rows.columns):
            good, rejects = rows, rows.iloc[:0].assign(**{stages.REASON: ""})
        else:
            good, rejects = stages.validate(rows, self._rules, self._seen)
            good = self._rules.normalise(good)
            self._measures.append(stages.aggregate(good, self._rules))
        self.kept += len(good)
        self.rejected += len(rejects)
        self.reasons.update(rejects[stages.REASON])
        return good, rejects.rename_axis("row").reset_index()

    def measures(self) -> pd.DataFrame:
        """The measures of all batches; of rows without rules, their number."""
        if self._rules is None or not self._measures:
            return pd.DataFrame({"rows": [self.kept]})
        return stages.combine(self._measures, self._rules)


def _batches(file: pq.ParquetFile, batch_size: int) -> Iterator[pd.DataFrame]:
    """The rows with their number in the partition as index; one empty batch where there are none, for the columns."""
    start = 0
    for batch in file.iter_batches(batch_size):
        yield _frame(pa.Table.from_batches([batch]), start)
        start += batch.num_rows
    if start == 0:
        yield _frame(file.schema_arrow.empty_table(), 0)


def _frame(table: pa.Table, start: int) -> pd.DataFrame:
    # Arrow's own types, so that rejects are written as they were read.
    rows: pd.DataFrame = table.to_pandas(types_mapper=pd.ArrowDtype)
    return rows.set_axis(pd.RangeIndex(start, start + len(rows)))


def _table(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata()


def _check_conserved(raw: lake.Partition, rows: int, refinery: _Refinery) -> None:
    if rows != refinery.kept + refinery.rejected:
        raise DataProcessingException(
            f"{raw}: {rows} rows were read, but {refinery.kept} processed and {refinery.rejected} rejected",
            processing_stage="conservation",
        )


def _result(status: str, new: int, kept: int, rejected: int) -> Result:
    return {"records_processed": new, "status": status, "rows": kept, "rejected": rejected}
