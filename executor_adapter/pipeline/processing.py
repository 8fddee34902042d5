"""Processes a window: steps over its rows; what comes out and the rejects go into the lake."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from executor_adapter.pipeline.casts import literal
from executor_adapter.pipeline.disk import digest_of
from executor_adapter.pipeline.job_log import do_each, log, progress
from executor_adapter.pipeline.lake.stored import WindowEntry, read_entry, rows_in, workspace
from executor_adapter.pipeline.lake.table import LakeTable, Writer, remove_windows
from executor_adapter.pipeline.steps import Processed, Run, fingerprint_of
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.text_rows import BATCH_ROWS, ROW, connected

MEMORY = "400MB"
"""Memory of DuckDB in one job; what does not fit goes to the disk."""


def process_window(table: ConfiguredTable, window: str, *, again: bool = False) -> Processed:
    """Write what the steps of a table make of a raw window, each of which is given all of its rows.

    A window that the same steps made of the same rows already stays as it is, unless it is processed `again`.

    Raises:
        DataProcessingException: DATA_ERROR, the window is not there or does not fit; CONFIGURATION_ERROR, a step
            returns what it must not.
        ConfigurationError: there is no such step.
    """
    steps, source, target, rejects = table.read_steps, table.raw, table.processed, table.rejects
    entry = source.get(window)
    fingerprint = processing_fingerprint(entry, fingerprint_of(steps, table.lake))
    if not again and (found := target.find(window)) and found.fingerprint == fingerprint:
        log("%s %s: already processed", target, window)
        return Processed(status="already_processed")
    with workspace(table.lake) as space, connected(space / "spill", 2, MEMORY) as database, ExitStack() as stack:
        run = Run(database, *_rows_of(source, window, space, stack), table.lake, space)
        for number, step in enumerate(steps):
            run.apply(step)
            progress(number + 1, len(steps), "steps")
        done = run.account
        # The stack closes in reverse order: the rows, which make the window processed, are published last.
        rows = stack.enter_context(target.writing(window, fingerprint=fingerprint))
        rows.drops, rows.merged = dict(done.drops), done.merged
        _write(rows, database, f"SELECT * EXCLUDE ({ROW}) FROM {run.rows}")
        if done.rejected:
            put_aside = stack.enter_context(rejects.writing(window, fingerprint=fingerprint))
            for query in run.rejects:
                _write(put_aside, database, f"{query} ORDER BY row")
        else:
            remove_windows(rejects, [window])
    said = "%s %s: %d rows given, %d kept, %d rejected, %d dropped, %d merged into others"
    log(said, target, window, done.given, done.kept, done.rejected, done.drops.total(), done.merged)
    for reason, number in done.reasons:
        log("%d rows: %s", number, reason)
    return done


def processing_fingerprint(entry: WindowEntry, steps: str) -> str:
    """Return the fingerprint of what the steps make of a window; `steps` is that of the steps."""
    # The last one is of the account: windows of which it says less are processed again.
    return digest_of(entry.fingerprint, entry.collected_at, steps, "drops by step")


def _rows_of(source: LakeTable, window: str, space: Path, stack: ExitStack) -> tuple[str, int, str]:
    """Return SQL that gives the rows of a window, how many they are, and SQL of the delivery of a row.

    They are of one version of it, which the stack holds while it is replaced.
    """
    version = space / "source.parquet"
    file = stack.enter_context(source.file_of(window).open("rb"))
    # By a name that no other window has, so that DuckDB takes nothing that it remembers of one.
    version.symlink_to(f"/dev/fd/{file.fileno()}")
    scan = f"read_parquet({literal(version)}, file_row_number = true, hive_partitioning = false)"
    query = f"SELECT * EXCLUDE (file_row_number), file_row_number + 1 AS {ROW} FROM {scan}"
    entry, ends = read_entry(version), 0
    cases = [f"WHEN {ROW} <= {(ends := ends + each.rows)} THEN {literal(each.origin)}" for each in entry.ranges]
    return query, entry.rows, f"nullif(CASE {' '.join(cases)} END, '')"


def _write(writer: Writer, database: duckdb.DuckDBPyConnection, query: str) -> None:
    reader = database.sql(query).to_arrow_reader(BATCH_ROWS)
    writer.add(pa.Table.from_batches([], schema=reader.schema))
    for batch in reader:
        writer.add(batch)


def process_windows(table: ConfiguredTable, windows: Sequence[str], *, again: bool = False) -> dict[str, Any]:
    """Process windows one after another, as `process_window` does. The body of a job.

    Returns:
        `records_processed`: rows that went through; `status`: `processed` or `already_processed`; `rejected`; `failed`:
        the windows of several that cannot be processed; to process each of them alone raises its error.
    """

    def process(window: str) -> dict[str, Any]:
        done = process_window(table, window, again=again)
        return {"records_processed": done.kept, "status": done.status, "rejected": done.rejected}

    with workspace(table.lake) as space, connected(space, 2, MEMORY):
        return do_each(windows, process, {"records_processed": 0, "status": "processed", "rejected": 0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The number of rows by where they are now: counted in the files, whatever jobs have reported."""

    name: str
    """What they are rows of: a tool, or a window."""
    collected: int = 0
    processed: int = 0
    rejected: int = 0
    """Rows that a step has rejected, or that did not fit their types."""
    drops: dict[str, int] = field(default_factory=dict)
    """Rows that a step has left out on purpose, by its name."""
    merged: int = 0
    """Rows that a step made others of; negative where there are more of these."""
    unprocessed: int = 0
    """Rows of windows whose processing did not succeed."""

    @property
    def holds(self) -> bool:
        """Whether every collected row is accounted for."""
        rest = self.rejected + sum(self.drops.values()) + self.merged + self.unprocessed
        return self.collected == self.processed + rest

    def __str__(self) -> str:
        dropped = "".join(f" + {rows:,} dropped by {step}" for step, rows in self.drops.items())
        merged = f" {'+' if self.merged > 0 else '-'} {abs(self.merged):,} merged into others" if self.merged else ""
        rest = f" + {self.unprocessed:,} not processed" if self.unprocessed else ""
        sign = "=" if self.holds else "≠"
        return (
            f"{self.name}: {self.collected:,} collected {sign} "
            f"{self.processed:,} processed + {self.rejected:,} rejected{dropped}{merged}{rest}"
        )


def balances(table: ConfiguredTable) -> Iterator[Balance]:
    """Yield the balance of each window of a table, and of each delivery that has lines or values that do not fit."""
    rejects = table.rejects.windows()
    for window, entry in rejects.items():
        if _is_of_delivery(entry) and entry.rows:
            yield Balance(name=window, collected=entry.rows, rejected=entry.rows)
    for window, rows, done in _made(table):
        if done is None:
            yield Balance(name=window, collected=rows, unprocessed=rows)
            continue
        put_aside = rejects.get(window)
        rejected = put_aside.rows if put_aside and put_aside.fingerprint == done.fingerprint else 0
        kept: dict[str, Any] = {"processed": done.rows, "drops": done.drops, "merged": done.merged}
        yield Balance(name=window, collected=rows, rejected=rejected, **kept)


def balance(name: str, tables: Iterable[ConfiguredTable]) -> Balance:
    """Count the rows of tables, such as those of a tool."""
    counts, drops = Counter[str](), Counter[str]()
    for each in (found for table in tables for found in balances(table)):
        drops.update(each.drops)
        counts.update({name: number for name, number in asdict(each).items() if isinstance(number, int)})
    return Balance(name=name, drops=dict(drops), **counts)


def reject_reasons(tables: Iterable[ConfiguredTable], since: float = 0) -> Counter[tuple[str, str]]:
    """Count rejected rows by table and rule: of reasons that differ in a value alone, three values are named.

    `since`: of windows alone whose rejects were written from then on, in seconds since 1970.
    """
    found: Counter[tuple[str, str]] = Counter()
    for table in tables:
        made = {window: done.fingerprint for window, _, done in _made(table) if done is not None}
        for window, entry in table.rejects.windows().items():
            if not (_is_of_delivery(entry) or entry.fingerprint == made.get(window)):
                continue
            with suppress(FileNotFoundError):  # Another run has put it right meanwhile.
                if table.rejects.file_of(window).stat().st_mtime >= since:
                    for rows in rows_in(table.rejects.file_of(window)):
                        found.update((table.name, str(reason)) for reason in rows["reason"].to_pylist())
    return _by_rule(found)


def windows_to_process(table: ConfiguredTable, *, again: bool = False) -> dict[str, int]:
    """Return the windows that the table's steps have not processed as they are now, and how many rows each has.

    `again`: also those that they have.
    """
    return {window: rows for window, rows, done in _made(table) if done is None or again}


def _made(table: ConfiguredTable) -> Iterator[tuple[str, int, WindowEntry | None]]:
    """Yield the raw windows, how many rows these have, and what the steps as they are now made of them."""
    steps = fingerprint_of(table.read_steps, table.lake)
    processed = table.processed.windows()
    for window, entry in table.raw.windows().items():
        done = processed.get(window)
        is_current = done and done.fingerprint == processing_fingerprint(entry, steps)
        yield window, entry.rows, done if is_current else None


def _is_of_delivery(rejects: WindowEntry) -> bool:
    """Return whether rejects are those of a delivery when it was read; those of steps have no origin."""
    return any(each.origin for each in rejects.ranges)


_VALUE = re.compile(r"""(?<=: )('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?\d[^\s;,]*)(?= )""")
"""Matches the value in a reason, such as `price: 'much' is not a decimal(8, 2)`, or `price: 1.5 less_than(0)`."""


def _by_rule(found: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    rules: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for (table, reason), rows in found.items():
        rules.setdefault((table, _VALUE.sub("…", reason)), []).append((reason, rows))
    grouped: Counter[tuple[str, str]] = Counter()
    for (table, rule), reasons in rules.items():
        values = dict.fromkeys(value[0] for reason, _ in reasons if (value := _VALUE.search(reason)))
        name = reasons[0][0] if len(reasons) == 1 else f"{rule} (such as {', '.join(list(values)[:3])})"
        grouped[table, name] += sum(rows for _, rows in reasons)
    return grouped
