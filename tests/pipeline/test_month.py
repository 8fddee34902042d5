"""A month of daily runs, with a clock that is moved: after each run the lake is compared with a dictionary by rows."""

from __future__ import annotations

import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from executor_adapter.config import Settings
from executor_adapter.exceptions import JobError
from executor_adapter.pipeline import ConfiguredTable, LakeTable, balance, rebuild_table, select_tables
from executor_adapter.pipeline.flows import steps
from executor_adapter.pipeline.sources import files, functions, sql
from executor_adapter.pipeline.sources.rest import resource
from executor_adapter.pipeline.text_rows import READ
from executor_adapter.pipeline.upkeep import remove_leftovers
from tests.api_server import serving
from tests.pipeline.month import Clock, Windows, World, shown

SOURCES = (files, functions, sql, resource)
"""They are imported by their first jobs, and here before that, so that they get the clock."""


class StoppedRun(BaseException):
    """Ends a run before all its jobs are done, as a kill does."""


class InlineRun:
    """Runs the jobs of a flow run one after another, in any order; `jobs` is how many of them, at most."""

    def __init__(self, settings: Settings, tables: Sequence[ConfiguredTable], chance: Random, jobs: int) -> None:
        self.settings = settings
        self.tables: dict[str, list[ConfiguredTable]] = {}
        for table in tables:
            self.tables.setdefault(table.tool_name, []).append(table)
        self.failed: dict[str, str] = {}
        self.again = Counter[str]()
        self._chance, self._left = chance, jobs
        self._open: list[tuple[Any, Callable[[Any], object], dict[str, Any]]] = []

    @contextmanager
    def executors(self, *stages: str) -> Iterator[None]:
        yield

    @contextmanager
    def reading_lake(self) -> Iterator[None]:
        yield

    def submit(self, task: Any, label: str, subject: str, then: Callable[[Any], object], /, **arguments: Any) -> None:
        self._open.append((task.fn, then, arguments))

    def wait(self) -> None:
        while self._open:
            if self._left == 0:
                raise StoppedRun
            self._left -= 1
            function, then, arguments = self._open.pop(self._chance.randrange(len(self._open)))
            try:
                done = function(**arguments)
            except (JobError, OSError) as error:
                self.failed[arguments["table"].full_name] = f"{function.__name__}: {error}"
                done = None
            then(done)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which the pipeline goes."""
    moved = Clock(datetime(2026, 3, 1, 4, tzinfo=UTC))

    class Moved(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return moved.now()

    moved_time = SimpleNamespace(**{**vars(time), "time": lambda: moved.now().timestamp()})
    for name, module in list(sys.modules.items()):
        if name.startswith("executor_adapter.pipeline"):
            source = inspect.getsource(module)
            if "datetime.now(" in source:
                monkeypatch.setattr(module, "datetime", Moved)
            if "time.time(" in source:
                monkeypatch.setattr(module, "time", moved_time)
    # What tells Prefect of tables is no part of this.
    monkeypatch.setattr(steps, "materialise", lambda *_: None)
    return moved


class Month:
    """Moves the clock, lets things happen, runs, and compares."""

    def __init__(self, folder: Path, clock: Clock, seed: int) -> None:
        self.chance = Random(seed)
        self.clock, self.lake = clock, folder / "lake"
        self.world = World(clock, self.chance, folder)
        self.log: list[str] = []
        self.url = ""

    def tables(self) -> tuple[Settings, list[ConfiguredTable]]:
        settings = Settings(lake=self.lake, tools=self.world.tools(self.url))
        return settings, select_tables(settings)

    def note(self, said: str) -> None:
        self.log.append(f"{self.clock.at:%m-%d %H:%M} {said}")

    def live(self, days: int) -> None:
        """Let days pass: on most of them there is a run, on some two, on some one that is killed; three have none."""
        begin = self.clock.at.date()
        off = self.chance.randint(3, max(3, days - 4))
        for number in range(days):
            hour = self.chance.choice((0, 3, 6, 12, 22))
            self.clock.at = datetime(begin.year, begin.month, begin.day, hour, 30, tzinfo=UTC) + timedelta(days=number)
            for said in self.world.pass_a_day():
                self.note(said)
            if off <= number < off + 3:
                self.note("no run")
                continue
            if self.chance.random() < 0.15:
                self.kill_a_run()
            self.run()
            if self.chance.random() < 0.3:
                self.operate()
            if self.chance.random() < 0.2:
                self.run()
                self.check_idle()

    def kill_a_run(self) -> None:
        jobs = self.chance.randint(1, 25)
        self.note(f"a run is killed after {jobs} jobs")
        with suppress(StoppedRun):
            self._run(jobs)

    def _run(self, jobs: int = -1) -> dict[str, str]:
        settings, tables = self.tables()
        run = InlineRun(settings, tables, self.chance, jobs)
        steps.Steps(run, ("collection", "processing")).do()  # type: ignore[arg-type]
        return run.failed

    def run(self) -> None:
        expected = {twin.full_name for twin in self.world.twins if twin.fails()}
        failed = self._run()
        self.note(f"run: {failed}")
        for twin in self.world.twins:
            twin.collected()
        assert failed.keys() == expected, self.said(failed)
        self.compare()

    def check_idle(self) -> None:
        """Run where nothing is new, and see that no row is written again."""
        before = self.files()
        self._run()
        now = self.files()
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        assert not changed, self.said(f"a run that has nothing to do has written {changed}")

    def files(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in self.lake.glob("*/*/*/window=*/*.parquet")}

    def operate(self) -> None:
        """Do one of the things that an operator may do at any time."""
        name, twin = self.chance.choice(("rebuild", "clean", "clean")), self.chance.choice(self.world.twins)
        # A file that a run cannot read ends a rebuild too: it is put right before.
        if name == "clean" or twin.fails():
            self.note(f"clean: {remove_leftovers(self.lake, older_than=-1.0)}")
            return
        self.note(f"rebuild {twin.full_name}")
        _, tables = self.tables()
        (table,) = (table for table in tables if table.full_name == twin.full_name)
        rebuild_table(table)
        twin.rebuilt()
        self.run()

    def compare(self) -> None:
        _, tables = self.tables()
        of = {table.full_name: table for table in tables}
        processed: dict[str, Windows] = {}
        for twin in self.world.twins:
            table, expected = of[twin.full_name], twin.expected(processed)
            processed[twin.full_name] = expected.processed
            self.same(f"{twin.full_name} raw", rows_of(table.raw), expected.raw)
            self.same(f"{twin.full_name} processed", rows_of(table.processed), expected.processed)
            rejected = rows_of(table.rejects)
            unfit = {name.removeprefix(READ): len(rows) for name, rows in rejected.items() if name.startswith(READ)}
            rejects = {name: len(rows) for name, rows in rejected.items() if not name.startswith(READ)}
            assert unfit == dict(expected.unfit), self.said(f"{twin.full_name} unfit: {unfit} not {expected.unfit}")
            assert rejects == dict(expected.rejected), self.said(f"{twin.full_name} {rejects} not {expected.rejected}")
            found = balance(twin.full_name, [table])
            assert (found.holds, found.unprocessed) == (True, 0), self.said(found)

    def same(self, name: str, found: Windows, expected: Windows) -> None:
        have, want = ({each: Counter(map(shown, rows)) for each, rows in some.items()} for some in (found, expected))
        if have != want:
            lines = [
                f"{window}: missing {dict(want.get(window, Counter()) - have.get(window, Counter()))}, "
                f"too many {dict(have.get(window, Counter()) - want.get(window, Counter()))}"
                for window in sorted(have.keys() | want.keys())
                if have.get(window) != want.get(window)
            ]
            pytest.fail(self.said("\n".join([f"{name} differs", *lines])))

    def said(self, what: object) -> str:
        return "\n".join([*self.log, str(what)])


def rows_of(table: LakeTable) -> Windows:
    """Return the rows of the windows that have some; times at which rows vanished as days."""
    found = {}
    for window in table.windows():
        rows = table.read(window).to_pylist()
        for row in rows:
            if row.get("vanished_at"):
                row["vanished_at"] = row["vanished_at"].date()
        if rows:
            found[window] = rows
    return found


def live(folder: Path, clock: Clock, seed: int, days: int) -> None:
    print(f"seed {seed}")
    month = Month(folder, clock, seed)
    with serving(lambda path, body: month.world.api(path, body)) as (url, _):
        month.url = url
        month.live(days)


def test_a_resource_that_is_down_fails_where_it_is_asked_for_something(tmp_path: Path, clock: Clock) -> None:
    """States are asked for with each of the people: where nobody came, none can fail."""
    month = Month(tmp_path, clock, seed=0)
    down, today, failed = month.world.api.down, clock.at.isoformat(), []
    with serving(lambda path, body: month.world.api(path, body)) as (month.url, _):
        for who, is_down in (("", True), ("p1", True), ("", False), ("", True), ("p2", True)):
            if who:
                month.world.api.people[who] = {"id": who, "came": today, "age": "1"}
            down.update({"/states"} if is_down else ())
            month.run()
            failed.append("club.states" in month.log[-1])
            down.clear()
    assert failed == [False, True, False, True, True]


def test_a_week_leaves_the_lake_as_it_has_to_be(tmp_path: Path, clock: Clock) -> None:
    """Late files, corrections, days without a run and sources that are down: each row is where it has to be."""
    live(tmp_path, clock, seed=3, days=7)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(5))
def test_a_month_leaves_the_lake_as_it_has_to_be(tmp_path: Path, clock: Clock, seed: int) -> None:
    """The same of thirty days, in which more of it happens: runs that are killed, rebuilds, windows that vanish."""
    live(tmp_path, clock, seed, days=30)
