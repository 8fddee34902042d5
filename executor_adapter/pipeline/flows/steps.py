"""The steps of a pipeline: collect the tables of its tools, process what they hold, and say what it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from typing import Any

from prefect.events import emit_event

from executor_adapter.config import FilesTool, RestTool
from executor_adapter.pipeline.collecting import find_windows
from executor_adapter.pipeline.flows import assets, jobs
from executor_adapter.pipeline.flows.run import Future, Run
from executor_adapter.pipeline.processing import windows_to_process
from executor_adapter.pipeline.sources.landing import Window
from executor_adapter.pipeline.tables import ConfiguredTable, in_order
from executor_adapter.pipeline.upkeep import lateness

MAX_BYTES = 64 << 20
"""Bytes of the files that one job collects, at most, where it has several."""
MAX_ROWS = 100_000
"""Rows of the windows that one job processes, at most, where it has several: jobs run side by side."""
MAX_WINDOWS = 500
"""Windows of one job, at most."""


def collect(run: Run, since: date | None = None, until: date | None = None) -> None:
    """Collect all tables of the run's tools. A failed job is shown in the table and stops no other job.

    Args:
        run: the run.
        since: the first day of a range that is collected again; None: only what is new is collected.
        until: the first day after that range; None: up to now.
    """
    tables = [table for each in run.tables.values() for table in each]
    with run.executor("collection"):
        # APIs come last: one of them may be the history of this very run, which holds more the later it is read.
        apis = [table for table in tables if isinstance(table.tool, RestTool)]
        searches = {
            run.submit(jobs.find_windows, "find", table.name, table=table, since=since, until=until): table
            for table in tables
            if table not in apis
        }
        collections = _Collections(run, again=since is not None or until is not None)
        for search, windows in run.as_completed(list(searches)):
            collections.submit(searches[search], windows)
        while apis:
            ready = [table for table in apis if table.parent not in {other.name for other in apis}]
            for table in ready:
                collections.submit(table, find_windows(table, since, until))
            # A resource of `for_each` needs the objects of the other one.
            apis = [table for table in apis if table not in ready]
            collections.wait()
        collections.wait()
        collections.settle()
    collections.materialise()
    for table in tables:
        if (late := lateness(table)) is not None:
            name = f"{table.tool_name}.{table.name}"
            emit_event(
                event="executor-adapter.table.late",
                resource={"prefect.resource.id": f"executor-adapter.table.{name}", "prefect.resource.name": name},
                payload={"expect": table.settings.expect, "late_seconds": round(late)},
            )


class _Collections:
    """The jobs that collect windows, and the windows that the tables have been found to have."""

    def __init__(self, run: Run, again: bool) -> None:
        self._run, self._again = run, again
        self._running: dict[Future, ConfiguredTable] = {}
        self._present: dict[str, set[str]] = {}
        self._settled: dict[str, ConfiguredTable] = {}
        self._new: dict[str, int] = {}

    def submit(self, table: ConfiguredTable, windows: list[Window] | None) -> None:
        """Submit jobs for the windows; None: they could not be found."""
        if windows and isinstance(table.tool, FilesTool) and table.settings.vanished_windows != "keep":
            self._settled[str(table)] = table
        self._submit(table, _together(windows or [], lambda window: window.size, MAX_BYTES))

    def _submit(self, table: ConfiguredTable, jobs_of: Iterable[list[Window]]) -> None:
        for some in jobs_of:
            subject = _subject([window.name for window in some])
            asked: dict[str, Any] = {"windows": some, "subject": subject, "again": self._again}
            future = self._run.submit(jobs.collect_windows, "collect", f"{table.name} {subject}", table=table, **asked)
            self._running[future] = table

    def wait(self) -> None:
        """Wait for the jobs that were submitted."""
        while self._running:
            running, self._running = self._running, {}
            for future, done in self._run.as_completed(list(running)):
                table = running[future]
                if done is None:
                    # What a file has that could not be collected is not known, so nothing of its table has vanished.
                    self._settled.pop(str(table), None)
                else:
                    self._present.setdefault(str(table), set()).update(done["windows"])
                    self._new[str(table)] = self._new.get(str(table), 0) + done["records_collected"]
                    self._submit(table, ([window] for window in done["failed"]))

    def materialise(self) -> None:
        """Tell Prefect which tables have new rows."""
        for tables in self._run.tables.values():
            for table in tables:
                if rows := self._new.get(str(table), 0):
                    assets.materialise_raw(table, tables, rows)

    def settle(self) -> None:
        """Apply the policies for windows that the sources have no longer."""
        futures = [
            self._run.submit(
                jobs.settle_windows, "settle", table.name, table=table, present=sorted(self._present.get(name, ()))
            )
            for name, table in self._settled.items()
        ]
        list(self._run.as_completed(futures))


def process(run: Run) -> list[dict[str, Any]]:
    """Process what the run's tools have in the lake and is not processed yet, and return the summaries of the tools."""
    run.processes = True
    tables = [table for each in run.tables.values() for table in each]
    with run.executor("processing"):
        new: dict[str, int] = {}
        for ready in in_order(tables):
            running: dict[Future, ConfiguredTable] = {}
            for table in ready:
                sizes = windows_to_process(table)
                running |= _submit_windows(run, table, _together(list(sizes), sizes.__getitem__, MAX_ROWS))
            while running:
                futures, running = running, {}
                for future, done in run.as_completed(list(futures)):
                    if done is not None:
                        table = futures[future]
                        new[str(table)] = new.get(str(table), 0) + done["records_processed"]
                        running |= _submit_windows(run, table, ([window] for window in done["failed"]))
        summaries = _summarise(run)
    for table in tables:
        if rows := new.get(str(table), 0):
            assets.materialise_processed(table, rows)
    return summaries


def _submit_windows(run: Run, table: ConfiguredTable, jobs_of: Iterable[list[str]]) -> dict[Future, ConfiguredTable]:
    submitted = {}
    for some in jobs_of:
        given: dict[str, Any] = {"table": table, "windows": some, "subject": _subject(some)}
        submitted[run.submit(jobs.process_windows, "process", f"{table.name} {_subject(some)}", **given)] = table
    return submitted


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


def _subject(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"


def _summarise(run: Run) -> list[dict[str, Any]]:
    futures = [
        run.submit(
            jobs.summarise, "report", "summary", tool=tool, tables=tables, reference=run.settings.tools[tool].summary
        )
        for tool, tables in run.tables.items()
        if run.settings.tools[tool].summary is not None
    ]
    return [value for _, value in run.as_completed(futures) if value is not None]
