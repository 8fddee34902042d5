"""SQLite files that several programs, and several executors of one program, have open."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from executor_adapter.job.status import JobStatus
from executor_adapter.store import open_store
from executor_adapter.store.sql import engines

PROGRAM = """
import sys
from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from tests.contract.stores.store_jobs import give

executors = {}
for line in sys.stdin:
    name = line.strip()
    if name in executors:
        executors.pop(name).shutdown()
    elif name:
        executors[name] = JobExecutor(1, config=Settings(), store=sys.argv[1])
    for executor in executors.values():
        executor.run(Job(function=give, args=(1,)))
        assert executor.flush()
    print(len(executors), flush=True)
"""


class Program:
    """Opens and closes executors on one store; with each order, every open one completes and records a job."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def order(self, name: str = "") -> int:
        """Open the executor of this name, or close it where it is open; return how many jobs were recorded then."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the program."""
        self._process.communicate()


@contextlib.contextmanager
def programs(url: str) -> Iterator[list[Program]]:
    started = [Program(url), Program(url)]
    try:
        yield started
    finally:
        for program in started:
            program.close()


def test_executors_on_one_file_lose_nothing_in_any_order_of_opening_and_closing(tmp_path: Path) -> None:
    """Whichever executor of two programs opens or closes a file while others have it open, a third sees all jobs."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    # Each of the three opens and closes once beside every set of others.
    executors = [(0, "first"), (0, "second"), (1, "first")]
    every_set = [frozenset(some) for size in range(4) for some in itertools.combinations(executors, size)]
    recorded = 0
    with programs(url) as started:
        opened: frozenset[tuple[int, str]] = frozenset()
        turns: Counter[frozenset[tuple[int, str]]] = Counter()
        while any(turns[some] < len(executors) for some in every_set):
            number, name = executors[turns[opened] % len(executors)]
            turns[opened] += 1
            opened ^= {(number, name)}
            recorded += started[number].order(name) + started[1 - number].order()
            with contextlib.closing(open_store(url)) as store:
                assert store.counts()[JobStatus.COMPLETED] == recorded, (turns, opened)


def test_a_new_file_is_opened_while_another_program_opens_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store waits to give its file a log, which SQLite refuses at once while another program begins to write."""
    file, waits = tmp_path / "jobs.db", []
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _: waits.append(other.execute("ROLLBACK")))
        monkeypatch.setattr(engines, "time", clock)
        with contextlib.closing(open_store(f"sqlite:///{file}")) as store:
            assert not any(store.counts().values())
    assert len(waits) == 1
