"""Which tests run together, and in which order.

A process of pytest-xdist collects a file when it is its turn, and not all files before the first test. A file is given
to the next process that is free; the longest come first.
"""

from __future__ import annotations

import functools
import gc
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.run import GROUPS

TESTS = Path(__file__).parent
DURATIONS = TESTS / "durations.json"
"""Seconds that each file of tests takes, written by `make durations`."""

CHECKS = ("typecheck", "examples")
"""Folders whose tests run mypy, pyright and mkdocs, and each code block of the pages: minutes of computing, by which
tests that run beside them would take longer."""

ALONE = TESTS / "test_real_time.py"
"""Runs after all others, in one process, with nothing beside it."""

IMPORTS_PREFECT = re.compile(
    r"^\s*(from|import) (prefect|flows|executor_adapter\.(prefect|pipeline\.flows)|tests\.(prefect|shared_server))\b",
    re.MULTILINE,
)
IMPORTS_OF_TESTS = re.compile(r"^from (tests\.[\w.]+) import (\w+)", re.MULTILINE)

FIRST = TESTS / "contract" / "test_length_of_the_way.py"
"""Runs first in its process: where another test has left a thread, Python 3.11 can trace no job, and it is skipped."""

LAST = TESTS / "contract" / "cluster" / "test_ray.py"
"""Runs when its process runs nothing more: in a program that has used Ray, what is forked later may crash in Ray's own
library (seen on Python 3.13, in the server of a `multiprocessing.Manager`)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--group", choices=GROUPS, help="run the tests of this group only (all)")
    parser.addoption("--record-durations", action="store_true", help=f"write {DURATIONS.name}")


def group(path: Path) -> str:
    """Return the group that a file of tests belongs to."""
    if path == ALONE:
        return "alone"
    if path.relative_to(TESTS).parts[0] in CHECKS:
        return "checks"
    return "prefect" if uses_prefect(path) else "tests"


@functools.cache
def uses_prefect(path: Path) -> bool:
    """Return whether a file imports Prefect, or a module of the tests that does."""
    files, seen = [path], {path}
    for file in files:  # What it imports of the tests is added meanwhile.
        text = file.read_text()
        if file.relative_to(TESTS).parts[0] == "prefect" or IMPORTS_PREFECT.search(text):
            return True
        for module, name in IMPORTS_OF_TESTS.findall(text):
            for each in (module, f"{module}.{name}"):
                imported = TESTS.parent / f"{each.replace('.', '/')}.py"
                if imported not in seen and imported.exists():
                    seen.add(imported)
                    files.append(imported)
    return False


def rank(path: Path, durations: dict[str, float]) -> tuple[int, float]:
    """Return the place of a file: the unknown are first, then the longest."""
    return (path == LAST) - (path == FIRST), -durations.get(str(path.relative_to(TESTS)), float("inf"))


def known_durations() -> dict[str, float]:
    """Return the seconds that each file took when they were recorded, by its path in `tests`."""
    return dict(json.loads(DURATIONS.read_text())) if DURATIONS.exists() else {}


class FileOfTests(pytest.Item):
    """A file of tests that a process collects and runs when it is its turn."""

    def __init__(self, *, module: pytest.Collector, **options: Any) -> None:
        super().__init__(**options)
        self.module = module
        self.add_marker(pytest.mark.timeout(0))  # Each of its tests has the limit, not all of them together.

    def run(self, following: pytest.Item | None) -> None:
        """Run its tests; what is kept for the session stays until `following`, the first item of the next file."""
        session, hook = self.session, self.config.hook
        gc.disable()  # Else collecting takes a quarter longer.
        tests: list[pytest.Item] = list(session.genitems(self.module))
        hook.pytest_collection_modifyitems(session=session, config=self.config, items=tests)
        gc.enable()
        gc.collect()
        gc.freeze()
        place = session.items.index(self)
        files = len(session.items)
        session.items += tests
        for test, after in zip(tests, [*tests, following][1:], strict=True):
            session.items[place] = test  # pytest-xdist looks here for the test whose report it sends.
            hook.pytest_runtest_protocol(item=test, nextitem=after)
            if session.shouldfail or session.shouldstop:
                break
        if not tests:  # What the tests before it have kept for it goes.
            session._setupstate.teardown_exact(following)  # noqa: SLF001 - pytest has no public way
        del session.items[files:]

    def runtest(self) -> None:
        raise NotImplementedError("its tests run, and not the file")


class _File(pytest.File):
    def __init__(self, *, module: pytest.Collector, **options: Any) -> None:
        super().__init__(**options)
        self.module = module

    def collect(self) -> Iterator[pytest.Item]:
        yield FileOfTests.from_parent(self, name=self.name, nodeid=self.nodeid, module=self.module)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave folders out in which no file is of the group, unless a file in them was named.

    The conftest.py of `prefect` imports Prefect. From then on each new process pool preloads it, as in a program that
    uses Prefect, which takes three seconds of a processor.
    """
    wanted = config.getoption("group")
    if wanted is None or collection_path.parent != TESTS or not collection_path.is_dir():
        return None
    if any(collection_path in Path(argument).absolute().parents for argument in config.args):
        return None
    return True if all(group(path) != wanted for path in collection_path.rglob("test_*.py")) else None


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(parent: pytest.Collector) -> Iterator[Any]:
    """Put the collecting of a file off, where a process of many collects whole files."""
    collected: list[pytest.Collector] = yield
    config = parent.config
    if not hasattr(config, "workerinput") or any("::" in argument for argument in config.args):
        return collected
    return [_File.from_parent(parent, path=module.path, module=module) for module in collected]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Select the files of the group and bring them into order; options that select tests are for those in them."""
    wanted = config.getoption("group")
    chosen = [item for item in items if wanted in (None, group(item.path))]
    durations = known_durations()
    ranks = {path: rank(path, durations) for path in {item.path for item in chosen}}
    chosen.sort(key=lambda item: ranks[item.path])
    items[:] = chosen
    yield
    if chosen and isinstance(chosen[0], FileOfTests):
        items[:] = chosen


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not isinstance(item, FileOfTests):
        return None
    item.run(nextitem)
    return True


class DurationRecorder:
    """Adds up what the tests of each file take, and writes it to the file."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid.partition("::")[0].removeprefix("tests/")] += report.duration

    def pytest_sessionfinish(self) -> None:
        known = known_durations() | {name: round(seconds, 1) for name, seconds in self._seconds.items()}
        existing = {name: seconds for name, seconds in sorted(known.items()) if (TESTS / name).exists()}
        DURATIONS.write_text(json.dumps(existing, indent=0) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("record_durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(DurationRecorder())
