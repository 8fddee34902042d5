"""The order of a run's jobs: each table is found, collected and processed when it can be, whatever others wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from functools import partial
from typing import Any

from prefect.events import emit_event

from executor_adapter.config import FilesTool, Stage
from executor_adapter.pipeline.flows import assets, jobs
from executor_adapter.pipeline.flows.run import Run
from executor_adapter.pipeline.processing import windows_to_process
from executor_adapter.pipeline.sources.landing import Window
from executor_adapter.pipeline.tables import ConfiguredTable, configured_tables
from executor_adapter.pipeline.upkeep import lateness

MAX_BYTES = 64 << 20
"""Bytes of the files that one job collects, at most, where it has several."""
MAX_ROWS = 100_000
"""Rows of the windows that one job processes, at most, where it has several: jobs run side by side."""
MAX_WINDOWS = 500
"""Windows of one job, at most."""


class Steps:
    """Submits the jobs of a run. A failed job is shown on the terminal and stops no other table.

    A table is processed once its own deliveries are in and the tables that its steps read are processed.

    Args:
        run: the run.
        stages: what is done: collection, processing or both.
        since: the first day of a range that is collected again; None: only what is new is collected.
        until: the first day after that range; None: up to now.
        again: whether windows are processed again that are processed already.
        window: the only window that is processed; None: all.
    """

    def __init__(
        self,
        run: Run,
        stages: Sequence[Stage],
        *,
        since: date | None = None,
        until: date | None = None,
        again: bool = False,
        window: str | None = None,
    ) -> None:
        self._run, self._stages, self._since, self._until = run, stages, since, until
        self._again, self._window = again, window
        self._tables = {table.full_name: table for tables in run.tables.values() for table in tables}
        self._is_backfill = since is not None or until is not None
        self._open = Counter[str]()
        """How many jobs of a table have not ended."""
        self._uncollected = set(self._tables if "collection" in stages else ())
        self._unprocessed = set(self._tables if "processing" in stages else ())
        self._waiting = set(self._unprocessed)
        """The tables whose processing has not begun."""
        self._present: dict[str, set[str]] = {}
        """The windows that are at the source, of tables for which those that vanished are settled."""
        self._collected, self._processed = Counter[str](), Counter[str]()
        """The new rows of each table."""

    def do(self) -> list[dict[str, Any]]:
        """Run all jobs, tell Prefect which tables have new rows or are late, and return the summaries of the tools."""
        with self._run.executors(*self._stages):
            for name, table in self._tables.items():
                if name in self._uncollected and self._parent_of(table) not in self._tables:
                    self._find(table)
            self._process_ready()
            self._run.wait()
            summaries = self._summarise() if "processing" in self._stages else []
        for name, table in self._tables.items():
            if rows := self._collected[name]:
                assets.materialise_raw(table, self._tables.values(), rows)
            if rows := self._processed[name]:
                assets.materialise_processed(table, rows)
            if "collection" in self._stages:
                _tell_if_late(table)
        return summaries

    def _parent_of(self, table: ConfiguredTable) -> str | None:
        return None if table.parent is None else f"{table.tool_name}.{table.parent}"

    def _find(self, table: ConfiguredTable) -> None:
        given: dict[str, Any] = {"table": table, "since": self._since, "until": self._until}
        self._run.submit(jobs.find_windows, "find", table.name, partial(self._found, table), **given)

    def _found(self, table: ConfiguredTable, windows: list[Window] | None) -> None:
        """Collect the windows; None: they could not be found."""
        settles = isinstance(table.tool, FilesTool) and table.settings.vanished_windows != "keep"
        # Of a range nothing is known of the windows beside it.
        if windows and settles and not self._is_backfill:
            self._present[table.full_name] = set()
        self._collect(table, _together(windows or [], lambda window: window.size, MAX_BYTES))

    def _collect(self, table: ConfiguredTable, jobs_of: Iterable[list[Window]]) -> None:
        self._submit(jobs.collect_windows, "collect", table, self._stored, jobs_of, again=self._is_backfill)
        if self._open[table.full_name]:
            return
        if (present := self._present.pop(table.full_name, None)) is None:
            self._end_collection(table)
        else:
            then = partial(self._end_collection, table)
            self._run.submit(jobs.settle_windows, "settle", table.name, then, table=table, present=sorted(present))

    def _stored(self, table: ConfiguredTable, done: dict[str, Any] | None) -> None:
        self._open[table.full_name] -= 1
        if done is None:
            # What a file has that could not be collected is not known, so nothing of its table has vanished.
            self._present.pop(table.full_name, None)
        else:
            self._collected[table.full_name] += done["records_collected"]
            if table.full_name in self._present:
                self._present[table.full_name].update(done["windows"])
        self._collect(table, _alone(done))

    def _end_collection(self, table: ConfiguredTable, _: object = None) -> None:
        """Go on with what needs the deliveries of a table: resources that are asked for by it, and its processing."""
        self._uncollected.discard(table.full_name)
        for other in self._tables.values():
            if self._parent_of(other) == table.full_name:
                self._find(other)
        self._process_ready()

    def _process_ready(self) -> None:
        for name, table in self._tables.items():
            is_ready = name not in self._uncollected and not table.reads & (self._uncollected | self._unprocessed)
            if name in self._waiting and is_ready:
                self._waiting.discard(name)
                sizes = windows_to_process(table, again=self._again)
                wanted = [each for each in sizes if self._window in (None, each)]
                self._process(table, _together(wanted, sizes.__getitem__, MAX_ROWS))

    def _process(self, table: ConfiguredTable, jobs_of: Iterable[list[str]]) -> None:
        self._submit(jobs.process_windows, "process", table, self._made, jobs_of, again=self._again)
        if not self._open[table.full_name]:
            self._unprocessed.discard(table.full_name)
            self._process_ready()

    def _made(self, table: ConfiguredTable, done: dict[str, Any] | None) -> None:
        self._open[table.full_name] -= 1
        self._processed[table.full_name] += 0 if done is None else done["records_processed"]
        self._process(table, _alone(done))

    def _submit(
        self,
        task: Any,
        label: str,
        table: ConfiguredTable,
        then: Callable[[ConfiguredTable, Any], None],
        jobs_of: Iterable[list[Any]],
        **given: Any,
    ) -> None:
        for windows in jobs_of:
            self._open[table.full_name] += 1
            names = [each.name if isinstance(each, Window) else each for each in windows]
            subject = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"
            asked = {"table": table, "windows": windows, "subject": subject} | given
            self._run.submit(task, label, f"{table.name} {subject}", partial(then, table), **asked)

    def _summarise(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any] | None] = []
        for tool in self._run.tables:
            if (reference := self._run.settings.tools[tool].summary) is not None:
                tables = configured_tables(self._run.settings, tool)  # Those too that this run leaves as they are.
                given: dict[str, Any] = {"tool": tool, "tables": tables, "reference": reference}
                self._run.submit(jobs.summarise, "report", "summary", found.append, **given)
        self._run.wait()
        return [each for each in found if each is not None]


def _tell_if_late(table: ConfiguredTable) -> None:
    if (late := lateness(table)) is not None:
        name = table.full_name
        emit_event(
            event="executor-adapter.table.late",
            resource={"prefect.resource.id": f"executor-adapter.table.{name}", "prefect.resource.name": name},
            payload={"expect": table.settings.expect, "late_seconds": round(late)},
        )


def _alone(done: dict[str, Any] | None) -> Iterator[list[Any]]:
    """Yield the windows that failed among others, each for a job of its own."""
    return ([window] for window in (done or {"failed": ()})["failed"])


def _together(windows: Sequence[Any], size_of: Callable[[Any], int], limit: int) -> Iterator[list[Any]]:
    """Yield the windows of each job: one large one, or several small ones."""
    some: list[Any] = []
    total = 0
    for window in windows:
        size = size_of(window)
        if some and (total + size > limit or len(some) == MAX_WINDOWS):
            yield some
            some, total = [], 0
        some.append(window)
        total += size
    if some:
        yield some
