"""The jobs of a run and their order: each table is found, collected and processed when it can be, whatever others do.

Collection runs in threads, since it mostly waits; processing in processes. A table that has new rows is an asset of
Prefect's: an event says so, and from which tables they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from functools import partial
from typing import Any

from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize
from prefect.events import emit_event

from executor_adapter.config import FilesTool, Stage
from executor_adapter.pipeline.collecting import collect_windows, find_windows
from executor_adapter.pipeline.flows.run import Run
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.processing import process_windows, windows_to_process
from executor_adapter.pipeline.sources.landing import Window
from executor_adapter.pipeline.tables import ConfiguredTable, configured_tables
from executor_adapter.pipeline.upkeep import expect_rows, lateness, settle_windows, summarise_tables
from executor_adapter.prefect import job_task

MAX_BYTES = 64 << 20
"""Bytes of the files that one job collects, at most, where it has several."""
MAX_ROWS = 100_000
"""Rows of the windows that one job processes, at most, where it has several: jobs run side by side."""
MAX_WINDOWS = 500
"""Windows of one job, at most."""


def subject_of(windows: Sequence[Window | str]) -> str:
    """Return how people call the windows of one job."""
    names = [each.name if isinstance(each, Window) else each for each in windows]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"


def _run_name(label: str, parameters: dict[str, Any]) -> str:
    return f"{label} {parameters['table']} {subject_of(parameters['windows'])}"


# The results of the jobs of tables are what they have written.
OF_TABLE: dict[str, Any] = {"tool_name": "{table.tool_name}", "persist_result": False}
COLLECTION: dict[str, Any] = {"pool": "thread", "job_type": "collection", **OF_TABLE}
PROCESSING: dict[str, Any] = {"pool": "process", "job_type": "processing", **OF_TABLE}
# It only reads what is there, so that it would fail again.
REPORT = PROCESSING | {"job_type": "report", "retry_attempts": 0, "tool_name": "{tool}"}

FIND = job_task(name="find windows", task_run_name="find windows of {table}", **COLLECTION)(find_windows)
COLLECT = job_task(name="collect windows", task_run_name=partial(_run_name, "collect"), **COLLECTION)(collect_windows)
SETTLE = job_task(name="settle windows", task_run_name="settle windows of {table}", **COLLECTION)(settle_windows)
PROCESS = job_task(name="process windows", task_run_name=partial(_run_name, "process"), **PROCESSING)(process_windows)
SUMMARISE = job_task(name="summarise", task_run_name="summarise {tool}", **REPORT)(summarise_tables)

Then = Callable[[Any], None]
"""Is called with what a job has returned; None: it failed."""
Done = dict[str, Any] | None
"""What a job of several windows has returned; None: it failed."""
Jobs = Generator[None, Any, Any]
"""Submits jobs, and waits for one of them at each `yield`, which gives what it has returned."""


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
        self._uncollected = set(self._tables if "collection" in stages else ())
        self._unprocessed = set(self._tables if "processing" in stages else ())
        self._to_collect, self._to_process = set(self._uncollected), set(self._unprocessed)
        """The tables with which it has not begun."""
        self._collected, self._processed = Counter[str](), Counter[str]()
        """The new rows of each table; of raw ones also those that came again."""

    def do(self) -> list[dict[str, Any]]:
        """Run all jobs, tell Prefect which tables have new rows or are late, and return the summaries of the tools."""
        with self._run.executors(*self._stages):
            self._begin_ready()
            self._run.wait()
            summaries = self._summarise() if "processing" in self._stages else []
        for name, table in self._tables.items():
            if rows := self._collected[name]:
                parents = [asset_of(other.raw) for other in self._tables.values() if other.name == table.parent]
                materialise(table.raw, parents or [f"source://{table.tool_name}/{table.name}"], rows)
            if rows := self._processed[name]:
                joined = [f"lake://processed/{each.replace('.', '/')}" for each in sorted(table.reads)]
                materialise(table.processed, [asset_of(table.raw), *joined], rows)
            if "collection" in self._stages:
                with self._run.reading_lake():
                    _tell_if_late(table)
        return summaries

    def _begin_ready(self) -> None:
        """Begin with each table that waits for no other any more."""
        for name, table in self._tables.items():
            parent = f"{table.tool_name}.{table.parent}"
            if name in self._to_collect and parent not in self._uncollected:
                self._to_collect.discard(name)
                _begin(partial(self._collect, table))
            is_in = name not in self._uncollected and not table.reads & (self._uncollected | self._unprocessed)
            if name in self._to_process and is_in:
                self._to_process.discard(name)
                _begin(partial(self._process, table))

    def _collect(self, table: ConfiguredTable, then: Then) -> Jobs:
        """Find and collect the windows of a table, and settle those that its source has no longer."""
        self._run.submit(FIND, "find", table.name, then, table=table, since=self._since, until=self._until)
        windows: list[Window] = (yield) or []
        groups = _together(windows, lambda window: window.size, MAX_BYTES)
        submit = partial(self._submit, COLLECT, "collect", table, then, again=self._is_backfill)
        found = yield from _each(groups, submit)
        done = [each for each in found if each is not None]
        self._run.again[table.tool_name] += (again := sum(each["again"] for each in done))
        self._collected[table.full_name] = again + sum(each["records_collected"] for each in done)
        settles = isinstance(table.tool, FilesTool) and table.settings.vanished_windows != "keep"
        # Of a range nothing is known of the windows beside it, and of what failed nothing of those that it has.
        if settles and windows and not self._is_backfill and len(done) == len(found):
            present = sorted({name for each in done for name in each["windows"]})
            given = {"present": present, "files": [window.name for window in windows]}
            self._run.submit(SETTLE, "settle", table.name, then, table=table, **given)
            yield
        self._uncollected.discard(table.full_name)
        self._begin_ready()

    def _process(self, table: ConfiguredTable, then: Then) -> Jobs:
        sizes = dict[str, int]()
        with self._run.reading_lake():
            sizes = windows_to_process(table, again=self._again)
        wanted = [each for each in sizes if self._window in (None, each)]
        groups = _together(wanted, sizes.__getitem__, MAX_ROWS)
        found = yield from _each(groups, partial(self._submit, PROCESS, "process", table, then, again=self._again))
        self._processed[table.full_name] = sum(each["records_processed"] for each in found if each is not None)
        self._unprocessed.discard(table.full_name)
        self._begin_ready()

    def _submit(
        self, task: Any, label: str, table: ConfiguredTable, then: Then, windows: list[Any], again: bool
    ) -> None:
        subject = f"{table.name} {subject_of(windows)}"
        self._run.submit(task, label, subject, then, table=table, windows=windows, again=again)

    def _summarise(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any] | None] = []
        for tool in self._run.tables:
            if (reference := self._run.settings.tools[tool].summary) is not None:
                tables = configured_tables(self._run.settings, tool)  # Those too that this run leaves as they are.
                given: dict[str, Any] = {"tool": tool, "tables": tables, "reference": reference}
                self._run.submit(SUMMARISE, "report", "summary", found.append, **given)
        self._run.wait()
        return [each for each in found if each is not None]


def _begin(work: Callable[[Then], Jobs]) -> None:
    """Begin `work`, which is given what its jobs are to call when they have ended: it goes on then."""

    def go_on(done: Any) -> None:
        with suppress(StopIteration):
            jobs.send(done)

    jobs = work(go_on)
    go_on(None)


def _each(groups: Iterable[list[Any]], submit: Callable[[list[Any]], None]) -> Generator[None, Done, list[Done]]:
    """Run a job for each group of windows, and one for each window that failed in a group; return what they did."""
    found, left, waiting = list[Done](), list(groups), 0
    while left or waiting:
        for windows in left:
            submit(windows)
        waiting += len(left) - 1
        done = yield
        found.append(done)
        left = [[window] for window in (done or {"failed": ()})["failed"]]
    return found


def asset_of(table: LakeTable) -> Asset:
    """Return the asset of a table in a layer of the lake; its address names no machine."""
    return Asset(
        key=f"lake://{table.layer}/{table.tool}/{table.name}",
        properties=AssetProperties(name=str(table), url=table.folder.absolute().as_uri()),
    )


def materialise(table: LakeTable, origins: Iterable[Asset | str], rows: int) -> None:
    """Tell that a table has new rows, and from which tables and sources they are."""
    asset = asset_of(table)

    @materialize(
        asset,
        by="executor_adapter",
        asset_deps=list(origins),
        name="materialise table",
        task_run_name=f"materialise {table}",
        persist_result=False,
    )
    def note() -> None:
        add_asset_metadata(asset, {"rows": rows})

    note()


def _tell_if_late(table: ConfiguredTable) -> None:
    expect_rows(table)
    if (late := lateness(table)) is not None:
        name = table.full_name
        emit_event(
            event="executor-adapter.table.late",
            resource={"prefect.resource.id": f"executor-adapter.table.{name}", "prefect.resource.name": name},
            payload={"expect": table.settings.expect, "late_seconds": round(late)},
        )


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
