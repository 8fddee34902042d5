"""The load: one statement of DuckDB numbers the rows of a delivery, casts them to their types and divides them.

A value that does not fit rejects its row, with the reason, and nothing else. Rows keep their order. What is wrong with
rows is asked for in a statement of its own, where some are wrong: to plan it costs more than to read a small file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.config import Column, TableSchema
from executor_adapter.pipeline.casts import cast, cleaned, literal
from executor_adapter.pipeline.errors import configuration_error, rows_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.lake.merging import key_texts
from executor_adapter.pipeline.text_rows import BATCH_ROWS, REJECTED, OnRejects, Text

_PERIODS = {"year": 4, "month": 7, "day": 10}


class Loaded(NamedTuple):
    """A part of what was loaded: typed rows, and the window of each."""

    rows: pa.RecordBatch
    windows: pa.Array


class Loader:
    """Loads the rows of one delivery.

    Args:
        connection: what `connected` gives, which is used for nothing else.
        schema: the types of the columns; None: everything stays text.
        partition: the columns whose typed values make the name of the window, joined by "-"; none: it is empty.
        period: "year", "month" or "day": of the one column, a date or a moment, only so much is taken; moments have
            their day in the zone of their column.
        delivery: what rejects call the delivery.
        key: the columns whose values tell in rejects which row it was; none: its text does.
        on_rejects: is given rows with a value that does not fit.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        schema: TableSchema | None = None,
        partition: Sequence[str] = (),
        period: str | None = None,
        delivery: str = "",
        key: Sequence[str] = (),
        on_rejects: OnRejects = lambda _: None,
    ) -> None:
        # Without a schema no column is declared, and all stay text; a schema in the configuration has at least one.
        self._schema = schema or TableSchema.model_construct(columns={})
        self._connection, self._partition, self._period, self._delivery = connection, partition, period, delivery
        self._key, self._on_rejects = key, on_rejects
        self._seen = set[str]()
        self.rows = 0
        """Rows that were typed or rejected."""

    def load(self, text: Text) -> Iterator[Loaded]:
        """Yield the typed rows of a text, and pass on its rejects.

        A declared column that the text lacks is null. Columns that are not declared come last.

        Raises:
            DataCollectionException: CONFIGURATION_ERROR, a column of `partition` is not there. See `read_texts`.
        """
        others, before = self._check_names(text.names), self.rows
        names = [*self._schema.columns, *others]
        texts = {name: f"c{number}" for number, name in enumerate(text.names)}
        with self._connection.cursor() as aside:
            unfit = 0
            for batch in text.select(self._connection, lambda source: self._statement(source, texts, others)):
                self.rows += batch.num_rows
                rows = pa.RecordBatch.from_arrays(batch.columns[3:], names=names)
                numbers, windows, unfit_texts = batch.columns[:3]
                if unfit_texts.null_count < batch.num_rows:
                    wrong, right = pc.is_valid(unfit_texts), pc.is_null(unfit_texts)
                    found = [numbers.filter(wrong), *unfit_texts.filter(wrong).flatten()]
                    aside.register("found", pa.Table.from_arrays(found, names=["_row", *texts.values()]))
                    # The lines of rows are known when all were read.
                    into = "INSERT INTO unfit" if unfit else "CREATE TEMP TABLE unfit AS"
                    aside.execute(f"{into} {self._reasons(texts)}")
                    unfit += 1
                    rows, windows = rows.filter(right), windows.filter(right)
                yield Loaded(rows, windows)
            starts = text.starts()
            for some in aside.sql("FROM unfit").to_arrow_reader(BATCH_ROWS) if unfit else ():
                said = [pa.repeat(pa.scalar(each), some.num_rows) for each in ("type", self._delivery)]
                lines = list[int | None]()
                for row in some["number"].to_pylist():
                    lines.append(next(islice(starts, row - before - 1, None), None))
                    before = row
                key = pa.Table.from_arrays(some.columns[4:], names=[*self._key])
                keys = pc.coalesce(some["no_key"], key_texts(key, self._key)) if self._key else some["text"]
                columns = [*said, pa.array(lines, pa.int64()), *some.columns[:3], keys]
                self._on_rejects(pa.RecordBatch.from_arrays(columns, schema=REJECTED))

    def finish(self) -> None:
        """Check that the delivery had every declared column, where it had a row.

        Raises:
            DataProcessingException: DATA_ERROR, a declared column was in no text and is not optional.
        """
        declared = {name for name, column in self._schema.columns.items() if not column.optional}
        missing = sorted(declared - self._seen)
        if missing and self.rows:
            raise rows_error(
                f"missing columns: {', '.join(missing)}: correct their names in the schema, or set optional: true; "
                f"the columns are {', '.join(sorted(self._seen))}",
                "schema",
            )

    def _check_names(self, names: Sequence[str]) -> list[str]:
        """Return the columns that are kept without being declared."""
        others = [name for name in names if name not in self._schema.columns]
        new = sorted(set(others) - self._seen)
        if new and self._schema.columns:
            log("columns that are not declared are kept as text: %s", ", ".join(new))
        self._seen |= set(names)
        return others

    def _statement(self, source: str, texts: Mapping[str, str], others: Sequence[str]) -> str:
        """Return the statement that numbers, divides and types rows, and gives the texts of those that do not fit."""
        numbered = f"(SELECT *, row_number() OVER () + {self.rows} AS _row FROM {source})"
        valued, wrong = self._judged(numbered, texts)
        typed = {name: f"t{number}" for number, name in enumerate(self._schema.columns)}
        typed |= {name: texts[name] for name in others}
        cases = " OR ".join(case for case, _ in wrong) or "false"
        packed = f"CASE WHEN {cases} THEN struct_pack({', '.join(f'{text} := {text}' for text in texts.values())}) END"
        return f"SELECT {', '.join(['_row', self._window(typed), packed, *typed.values()])} FROM {valued}"

    def _reasons(self, texts: Mapping[str, str]) -> str:
        """Return the statement that says what is wrong with the rows in `found`, and shows each of them as JSON."""
        valued, wrong = self._judged("found", texts)
        said = ", ".join(f"CASE WHEN {case} THEN {reason} END" for case, reason in wrong)
        row = ", ".join(f"{literal(name)}, {text}" for name, text in texts.items())
        shown = f"concat_ws('; ', {said}) AS reason, CAST(json_object({row}) AS VARCHAR) AS text"
        key = [f"t{[*self._schema.columns].index(name)}" for name in self._key]
        no_key = f"CASE WHEN {' OR '.join(f'{each} IS NULL' for each in key) or 'true'} THEN text END AS no_key"
        return f"SELECT {', '.join(['_row AS number', shown, no_key, *key])} FROM {valued}"

    def _judged(self, source: str, texts: Mapping[str, str]) -> tuple[str, list[tuple[str, str]]]:
        """Return SQL that adds the values to texts, what can be wrong with them, and SQL of what is said then.

        x0, x1 are the texts of the declared columns without words that mean null, and t0, t1 the values.
        """
        clean, values, wrong = list[str](), list[str](), list[tuple[str, str]]()
        for number, (name, column) in enumerate(self._schema.columns.items()):
            given = texts.get(name)
            clean.append(f"{'CAST(NULL AS VARCHAR)' if given is None else cleaned(column, given)} AS x{number}")
            value, mistake = cast(column, f"x{number}")
            values.append(f"{value} AS t{number}")
            wrong += _reasons(name, column, f"x{number}", f"t{number}", mistake)
        return f"(SELECT {', '.join(['*', *values])} FROM (SELECT {', '.join(['*', *clean])} FROM {source}))", wrong

    def _window(self, typed: dict[str, str]) -> str:
        missing = next((each for each in self._partition if each not in typed), None)
        if missing is not None:
            raise configuration_error(f"partition: there is no column {missing}: the columns are {', '.join(typed)}")
        return " || '-' || ".join(self._part_of_name(name, typed[name]) for name in self._partition) or "''"

    def _part_of_name(self, name: str, value: str) -> str:
        column = self._schema.columns.get(name)
        if self._period is None:
            # 2013-2 would come after 2013-10.
            return rf"coalesce(regexp_replace(CAST({value} AS VARCHAR), '^(\d)$', '0\1'), 'null')"
        kind = "text" if column is None else column.kind
        if column is not None and kind == "timestamp":
            value = f"CAST(timezone({literal(column.zone or 'UTC')}, {value}) AS DATE)"
        text = f"CAST({value} AS VARCHAR)"
        if kind not in ("date", "timestamp"):
            # What is not a date has a window of its own.
            text = rf"CASE WHEN regexp_matches({text}, '^\d{{4}}-\d\d-\d\d') THEN {text} END"
        return f"coalesce({text}[:{_PERIODS[self._period]}], 'null')"


def by_window(loaded: Loaded) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield the rows by the window they belong to; the rows of a window keep their order."""
    rows, windows = loaded
    names = pc.unique(windows).to_pylist()
    runs = pc.run_end_encode(windows)
    if len(runs.values) > len(names):
        for window in names:
            yield window, rows.filter(pc.equal(windows, window))
        return
    # The rows of each window are together, as in most files: nothing is copied.
    start = 0
    for window, end in zip(names, runs.run_ends.to_pylist(), strict=True):
        yield window, rows.slice(start, end - start)
        start = end


def _reasons(name: str, column: Column, text: str, value: str, wrong: str) -> Iterator[tuple[str, str]]:
    """Yield SQL of what can be wrong with a value, and of what is said then."""
    if not column.nullable:
        yield f"{text} IS NULL", literal(f"{name}: is empty")
    if wrong:
        said = f"{literal(f'{name}: ')} || shown({text}) || {literal(f' {wrong}')}"
        yield f"({text} IS NOT NULL AND {value} IS NULL)", said
