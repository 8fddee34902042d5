"""Holds how long the way of a job through the package is: files entered, changes of file, calls of functions.

The figures are counts, so they do not depend on the machine. A bound is only ever lowered: what shortens the way lowers
it. `pytest -s` prints what was counted.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings
from executor_adapter.pools.in_process.call import bind
from executor_adapter.pools.transport.envelope import returned
from tests.insides import is_asleep, supervisor_of
from tests.waiting import wait_for

PACKAGE = "/executor_adapter/"
BOUNDS: dict[str, dict[str, float]] = {
    "process": {"files": 23, "changes": 50, "caller": 21, "supervisor": 29, "worker": 24.5},
    "thread": {"files": 17, "changes": 39, "caller": 20, "supervisor": 26},
}
"""Of one job, on an idle executor: files of the package that its threads enter, and changes from one to another.
Of each job in a burst: calls of functions written in Python, those of other packages included."""

ROUNDS = 8
"""The smallest figure of so many rounds counts: what is not of every job falls into some of them only."""
BURSTS = 40
"""Bursts at most, until one worker has run a whole one, and keeps to the bound."""
BURST = 400

calls_here = 0


class Trace:
    """Records, while it is on, the code of the functions that each thread calls, by the name of the thread."""

    def __init__(self) -> None:
        self.is_on = False
        self.caller = threading.current_thread().name
        self.entered: defaultdict[str, list[CodeType]] = defaultdict(list)

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self.is_on:
            self.entered[threading.current_thread().name].append(frame.f_code)

    def start(self) -> None:
        self.entered.clear()
        self.is_on = True

    def of_package(self) -> Iterator[list[str]]:
        """Yield the files of the package that each thread of the host has entered, in order."""
        for name in (self.caller, "executor-supervisor"):
            yield [code.co_filename for code in self.entered[name] if PACKAGE in code.co_filename]

    def calls_a_job(self, name: str) -> int:
        """Return how many calls of a burst each of its jobs makes. How many turns it takes depends on the machine."""
        return sum(round(calls / BURST) for calls in Counter(self.entered[name]).values())


@pytest.fixture
def trace() -> Iterator[Trace]:
    """A trace of this thread, and of the threads that are started from now on."""
    if sys.version_info < (3, 12) and any(thread.name == "executor-worker" for thread in threading.enumerate()):
        # Seen with 3.11.7, not with 3.12.1: a profiled call loops for as long as the thread does not see its exception.
        pytest.skip("Python 3.11 hangs if it is profiled while another test's abandoned thread is stuck")
    made, own, of_threads = Trace(), sys.getprofile(), threading.getprofile()
    threading.setprofile(made)
    sys.setprofile(made)
    yield made
    sys.setprofile(own)
    threading.setprofile(of_threads)


def nothing() -> None:
    pass


def rest() -> None:
    """Run until the caller and the supervisor wait: otherwise the way would depend on who is first."""
    time.sleep(0.02)


def count_calls() -> None:
    """Count the calls of this worker process from now on."""

    def count(_: FrameType, event: str, __: Any) -> None:
        global calls_here
        calls_here += event == "call"

    sys.setprofile(count)


def calls_so_far() -> tuple[int, int]:
    """Return the number of calls, and the process that has counted them."""
    return calls_here, os.getpid()


@pytest.mark.parametrize("pool", list(BOUNDS))
def test_one_job_enters_few_files(pool: str, trace: Trace) -> None:
    """A job on an idle executor passes no more files of the package, and changes them no more often, than it may."""
    files, changes = [], []
    with JobExecutor(1, config=Settings()) as executor:
        executor.run(Job(function=rest, pool=pool))
        for _ in range(ROUNDS):
            wait_for(lambda: is_asleep(executor))
            trace.start()
            executor.run(Job(function=rest, pool=pool))
            wait_for(lambda: is_asleep(executor))
            trace.is_on = False
            ways = list(trace.of_package())
            files.append(len({file for way in ways for file in way}))
            changes.append(sum(a != b for way in ways for a, b in itertools.pairwise(["", *way])))
    hold(pool, {"files": min(files), "changes": min(changes)})


@pytest.mark.parametrize("pool", list(BOUNDS))
def test_jobs_of_a_burst_make_few_calls(pool: str, trace: Trace) -> None:
    """A job of a burst costs its caller and the supervisor no more calls of functions than it may."""
    with JobExecutor(1, config=Settings()) as executor:
        executor.run(Job(function=nothing, pool=pool))
        wait_for(lambda: is_asleep(executor))
        go = threading.Event()
        supervisor_of(executor).call_soon(go.wait)
        trace.start()
        futures = [executor.submit(Job(function=nothing, pool=pool)) for _ in range(BURST)]
        caller = trace.calls_a_job(trace.caller)
        go.set()
        futures[-1].result()  # One worker runs them in order.
        trace.is_on = False
    hold(pool, {"caller": caller, "supervisor": trace.calls_a_job("executor-supervisor")})


def test_a_worker_makes_few_calls_a_job() -> None:
    """A job of a burst costs its worker process no more calls of functions than it may."""
    with JobExecutor(1, config=Settings(), initializer=count_calls) as executor:
        figures = {"worker": float("inf")}
        for _ in range(BURSTS):
            before, counted_in = executor.run(Job(function=calls_so_far, pool="process"))
            for future in [executor.submit(Job(function=nothing, pool="process")) for _ in range(BURST)]:
                future.result()
            after, pid = executor.run(Job(function=calls_so_far, pool="process"))
            if pid == counted_in:
                figures = {"worker": (after - before) / BURST}
            if figures["worker"] <= BOUNDS["process"]["worker"]:
                break
    hold("process", figures)


def test_no_object_is_made_for_arguments_and_results_that_are_not_there() -> None:
    """Each object that a job keeps is one more for the garbage collector, which took a third of a thread job's CPU."""
    assert bind(Job(function=nothing)) is nothing
    assert returned(None) is returned(None)


def hold(pool: str, figures: Mapping[str, float]) -> None:
    """Print figures, and hold each to its bound."""
    print(f"{pool}: " + ", ".join(f"{name} {figure:g} of {BOUNDS[pool][name]}" for name, figure in figures.items()))
    assert {name: figure for name, figure in figures.items() if figure > BOUNDS[pool][name]} == {}
