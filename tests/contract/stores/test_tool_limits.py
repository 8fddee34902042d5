"""Limits of tools hold over all executors of a store, whatever happens to them; pauses and set limits too."""

from __future__ import annotations

import logging
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus, ToolLimit
from executor_adapter.exceptions import JobTimeoutError
from executor_adapter.store import JobStore, open_store
from executor_adapter.supervision import tools as tool_limits
from tests.contract import functions
from tests.contract.stores import limited_host
from tests.contract.stores.conftest import MakeStored, on_both, wait_for_end
from tests.contract.stores.limited_host import TOOL, most_at_once, runs_in
from tests.waiting import PATIENCE, wait_for

ONE = {TOOL: ToolLimit(max_concurrent=1)}
TWO = {TOOL: ToolLimit(max_concurrent=2)}

Submit = Callable[..., JobFuture]


def submit(executor: JobExecutor, seconds: float = 0.0, *, tool: str = TOOL, **fields: object) -> JobFuture:
    """Submit a job that returns when it began and ended."""
    job = Job(function=functions.times_of_a_sleep, args=(seconds,), tool_name=tool, pool="thread", **fields)
    return executor.submit(job)


def hold(executor: JobExecutor, gate: Path, tool: str = TOOL) -> JobFuture:
    """Submit a job that runs until the file exists, and wait until it runs."""
    job = Job(function=functions.wait_for_file, args=(str(gate),), tool_name=tool, pool="thread")
    future = executor.submit(job)
    wait_for(lambda: job.status is JobStatus.RUNNING)
    return future


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let executors look at what is set for tools every 20 ms."""
    monkeypatch.setattr(tool_limits, "CONTROLS_INTERVAL", 0.02)
    monkeypatch.setattr(tool_limits, "KNOWN_SECONDS", 0.1)


# --- how many at once ---


@on_both
def test_a_limit_holds_over_all_executors(make_stored: MakeStored) -> None:
    """Three executors with many jobs never run more of them at once than the limit."""
    executors = [make_stored(4, queue=name, tool_limits=TWO) for name in "abc"]
    futures = [submit(executor, 0.004) for _ in range(40) for executor in executors]
    assert most_at_once(sorted(future.result(PATIENCE) for future in futures)) == 2


def test_each_executor_gets_its_turn(make_stored: MakeStored) -> None:
    """An executor that never runs out of jobs gives up its slots for others."""
    busy, *others = (make_stored(4, queue=name, tool_limits=TWO) for name in "abc")
    futures = [submit(busy, 0.004)]
    futures[0].result(PATIENCE)
    waiting = [submit(executor, 0.004) for executor in others for _ in range(2)]
    while not all(future.done() for future in waiting):
        futures += [submit(busy, 0.004) for _ in range(20 - len(busy.jobs()))]
        time.sleep(0.002)
    assert most_at_once(sorted(future.result(PATIENCE) for future in [*futures, *waiting])) <= 2


def test_a_slot_that_is_freed_is_taken_by_another_executor(
    make_stored: MakeStored, store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the job that holds the only slot ends, another executor's job starts by the next look for a free slot."""
    for name in ("CONTROLS_INTERVAL", "KNOWN_SECONDS"):
        monkeypatch.setattr(tool_limits, name, 3600.0)  # Nothing else makes it look.
    holder, waiter = (make_stored(2, queue=name, tool_limits=ONE) for name in "ab")
    held = hold(holder, tmp_path / "gate")
    waiting = submit(waiter)
    wait_for(lambda: any(use.waits_since for use in store.tools().uses))
    assert waiting.job.status is JobStatus.PENDING
    (tmp_path / "gate").touch()
    held.result(PATIENCE)
    waiting.result(PATIENCE)


@on_both
def test_processes_share_a_limit_and_a_killed_one_frees_its_slots(url: str, tmp_path: Path) -> None:
    """Programs hold the limit together; what a killed one held is free for the others at once."""
    with programs(url, tmp_path, number=40, seconds=0.02) as started:
        time.sleep(0.3)
        started[0].kill()
        assert [program.wait(PATIENCE) for program in started] == [-signal.SIGKILL, 0]
    runs = runs_in(tmp_path)
    assert most_at_once(runs) == 2
    assert 40 <= len(runs) < 80


@pytest.mark.chaos
def test_three_processes_with_a_thousand_jobs(url: str, tmp_path: Path) -> None:
    """Three programs, a limit of two, 1,000 jobs: never three at once, and a free slot is taken within 100 ms."""
    with programs(url, tmp_path, number=334, seconds=0.01, count=3) as started:
        assert [program.wait(PATIENCE) for program in started] == [0, 0, 0]
    runs = runs_in(tmp_path)
    assert len(runs) == 3 * 334
    assert most_at_once(runs) == 2
    gaps = [following[0] - ended for following, ended in zip(runs[2:], sorted(e for _, e in runs), strict=False)]
    print(f"\nslot free for: median {statistics.median(gaps) * 1000:.1f} ms, longest {max(gaps) * 1000:.1f} ms")
    assert statistics.quantiles(gaps, n=10)[8] < 0.1  # The longest ones are those of a busy machine.


@contextmanager
def programs(
    url: str, folder: Path, *, number: int, seconds: float, count: int = 2
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start programs with jobs of one tool, and let them begin at the same time."""
    command = [sys.executable, "-m", limited_host.__name__, url, str(number), "2", str(seconds)]
    started = [
        subprocess.Popen([*command, str(folder / str(n))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for n in range(count)
    ]
    try:
        for program in started:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        for program in started:
            assert program.stdin is not None
            program.stdin.write("go\n")
            program.stdin.flush()
        yield started
    finally:
        for program in started:
            program.kill()
            program.communicate()


def test_idle_slots_are_given_back(make_stored: MakeStored, store: JobStore) -> None:
    """An executor without jobs of the tool holds nothing of it."""
    executor = make_stored(2, tool_limits=TWO)
    submit(executor).result(PATIENCE)
    wait_for(lambda: store.tools().uses == [])


# --- how many a second ---


@on_both
def test_a_rate_holds_over_all_executors(make_stored: MakeStored) -> None:
    """Two executors start no more jobs together than the rate allows since the first was submitted."""
    limits = {TOOL: ToolLimit(rate=10.0)}
    executors = [make_stored(4, queue=name, tool_limits=limits) for name in "ab"]
    submitted = time.monotonic()
    futures = [submit(executor) for _ in range(7) for executor in executors]
    began = sorted(future.result(PATIENCE)[0] for future in futures)
    # A late start is no fault of the limit, an early one is.
    assert all(began[number] - submitted > (number - 1) / 10 for number in range(len(began)))


def test_a_tool_that_asks_to_wait_is_left_alone_by_all(
    make_stored: MakeStored, store: JobStore, tmp_path: Path
) -> None:
    """After RATE_LIMITED with a retry_after, no executor starts a job of the tool before that."""
    limited, other = (make_stored(2, queue=name, tool_limits=TWO) for name in "ab")
    submit(other).result(PATIENCE)
    arguments = (str(tmp_path / "calls"), 0.5)
    job = Job(function=functions.be_rate_limited_once, args=arguments, tool_name=TOOL, pool="thread", retry_delay=0.01)
    future = limited.submit(job)
    due = wait_for(lambda: job.retry_at)
    wait_for(lambda: store.tools().control(TOOL).closed_until)  # The other executor may start jobs until then.
    late = submit(other)
    late.result(PATIENCE)
    assert late.job.started_at is not None
    assert late.job.started_at > due - timedelta(milliseconds=5)
    future.result(PATIENCE)


# --- pauses and limits that were set ---


@pytest.mark.parametrize("limits", [{}, ONE])
def test_nothing_of_a_paused_tool_starts(
    limits: dict[str, ToolLimit], make_stored: MakeStored, store: JobStore, tmp_path: Path, quick: None
) -> None:
    """No executor starts jobs of a paused tool until it is resumed, whether it has a limit or not; others run."""
    first, second = (make_stored(2, queue=name, tool_limits=limits) for name in "ab")
    running = hold(first, tmp_path / "gate")
    store.pause_tool(TOOL, "somebody")
    time.sleep(0.3)
    (tmp_path / "gate").touch()
    running.result(PATIENCE)

    waiting = [submit(executor) for executor in (first, second)]
    for executor in (first, second):
        submit(executor, tool="other").result(PATIENCE)
    assert [future.job.status for future in waiting] == [JobStatus.PENDING] * 2

    store.pause_tool(TOOL, None)
    for future in waiting:
        future.result(PATIENCE)


def test_a_job_of_a_paused_tool_keeps_its_queue_timeout(make_stored: MakeStored, store: JobStore) -> None:
    """A job that waits for a paused tool ends at its queue_timeout."""
    store.pause_tool(TOOL, "somebody")
    future = submit(make_stored(), queue_timeout=0.2)
    with pytest.raises(JobTimeoutError):
        future.result(PATIENCE)
    assert future.job.error_code == "QUEUE_TIMEOUT"


def test_a_limit_that_was_set_wins(make_stored: MakeStored, store: JobStore, tmp_path: Path, quick: None) -> None:
    """A limit that is set in the store holds at once for jobs that run already, and wins over the executor's own."""
    executor = make_stored(4, tool_limits={TOOL: ToolLimit(max_concurrent=4)})
    unlimited = make_stored(4, queue="b")
    gates = [tmp_path / str(number) for number in range(2)]
    running = [hold(executor, gates[0]), hold(unlimited, gates[1])]
    store.limit_tool(TOOL, ToolLimit(max_concurrent=2), "somebody")
    time.sleep(0.3)
    third = submit(unlimited)
    time.sleep(0.2)
    assert third.job.status is JobStatus.PENDING
    gates[0].touch()
    assert third.result(PATIENCE)
    store.limit_tool(TOOL, None, "somebody")
    gates[1].touch()
    for future in running:
        future.result(PATIENCE)


# --- trouble ---


@pytest.mark.parametrize("limits", [{}, ONE])
def test_a_row_of_a_tool_that_makes_no_sense_harms_no_record(
    limits: dict[str, ToolLimit], make_stored: MakeStored, url: str, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs of tools wait until such a row is mended, which is logged once; all other jobs are recorded whole."""
    if not url.startswith("sqlite"):
        pytest.skip("other databases hold nothing but numbers there")
    store.limit_tool("other", ToolLimit(rate=1.0), "somebody")
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE executor_adapter_tools SET rate = 'fast'")
    executor = make_stored(tool_limits=limits)
    waiting = submit(executor)
    for number in range(3):
        job = Job(function=functions.fail_with_code, args=("DATA_ERROR",), metadata={"page": number}, pool="thread")
        executor.submit(job).exception(PATIENCE)
        record = wait_for_end(store, job.job_id)
        assert (record.error_code, record.metadata, len(record.attempts)) == ("DATA_ERROR", job.metadata, 1)
        assert "fail_with_code" in (record.traceback or "")
    assert waiting.job.status is JobStatus.PENDING
    wait_for(lambda: "does not say what tools may start" in caplog.text)

    store.limit_tool("other", None, "me")
    waiting.result(PATIENCE)
    logged = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged == ["the store does not say what tools may start: jobs with a tool_name wait for it"]


def test_a_store_that_is_down_lets_no_further_job_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, make_stored: MakeStored, url: str
) -> None:
    """While the store is away an executor goes on in the slots that it holds, and others wait, which is logged."""
    monkeypatch.setattr(tool_limits, "SILENCE_SECONDS", 0.1)
    if not url.startswith("sqlite"):
        pytest.skip("the file of SQLite is what can be taken away here")
    caplog.set_level(logging.WARNING, logger="executor_adapter")
    holder, waiter = (make_stored(2, queue=name, tool_limits=ONE) for name in "ab")
    gates = [tmp_path / "0", tmp_path / "1"]
    held = [
        hold(holder, gates[0]),
        holder.submit(Job(function=functions.wait_for_file, args=(str(gates[1]),), tool_name=TOOL, pool="thread")),
    ]
    file = Path(url.removeprefix("sqlite:///"))
    away = file.rename(file.with_suffix(".away"))
    waiting = submit(waiter)
    wait_for(lambda: "1 jobs with a tool_name wait" in caplog.text)
    gates[0].touch()
    held[0].result(PATIENCE)
    wait_for(lambda: held[1].job.status is JobStatus.RUNNING)
    assert waiting.job.status is JobStatus.PENDING
    away.rename(file)
    wait_for(lambda: "can be written again" in caplog.text)
    assert waiting.job.status is JobStatus.PENDING
    gates[1].touch()
    waiting.result(PATIENCE)
    assert held[1].done()


DELAYS = (0.0, 0.0, 0.0, 0.01, 0.1, 0.5, 2.0)
"""Seconds by which a slow store is late, before and after it does what it is asked for."""


@pytest.mark.chaos
@pytest.mark.parametrize("turn", range(int(os.environ.get("SLOW_ROUNDS", "5"))))
@pytest.mark.parametrize(
    "limit",
    [ToolLimit(max_concurrent=2), ToolLimit(rate=60, burst=4), ToolLimit(max_concurrent=2, rate=60, burst=4)],
    ids=["slots", "rate", "both"],
)
def test_no_job_waits_for_ever_after_a_slow_store(
    make_stored: MakeStored, url: str, monkeypatch: pytest.MonkeyPatch, limit: ToolLimit, turn: int
) -> None:
    """Whatever delays did to the order of what is asked and answered, all jobs end when the store is quick again."""
    delays = random.Random(turn)
    is_slow = threading.Event()
    is_slow.set()

    def late(call: Callable[..., object]) -> Callable[..., object]:
        def call_late(*args: object, **options: object) -> object:
            if is_slow.is_set():
                time.sleep(delays.choice(DELAYS))
            answer = call(*args, **options)
            if is_slow.is_set():
                time.sleep(delays.choice(DELAYS))
            return answer

        return call_late

    with ExitStack() as stack:
        executors = []
        for name in "abc":
            store = stack.enter_context(closing(open_store(url)))
            for method in ("tools", "write"):
                monkeypatch.setattr(store, method, late(getattr(store, method)))
            executors.append(make_stored(4, queue=name, tool_limits={TOOL: limit}, store=store))
        futures = [submit(executor, 0.004) for _ in range(40) for executor in executors]
        time.sleep(delays.uniform(0.2, 6.0))
        is_slow.clear()
        wait_for(lambda: all(future.done() for future in futures))
        for executor in executors:
            executor.shutdown()


def test_a_lost_lease_is_replaced(make_stored: MakeStored, store: JobStore, tmp_path: Path) -> None:
    """An executor whose lease was taken stops its job and runs it again, in a slot of its new lease."""
    executor, other = (make_stored(2, queue=name, tool_limits=ONE, settings={"recover_every": 0.1}) for name in "ab")
    running = hold(executor, tmp_path / "gate")
    (use,) = store.tools().uses
    store.leave(use.host_id)
    running.exception(PATIENCE)  # It is stopped, because another host may run it.
    wait_for(lambda: executor.running())
    (again,) = store.tools().uses
    assert (again.held, again.host_id == use.host_id) == (1, False)
    waiting = submit(other)
    time.sleep(0.2)
    assert waiting.job.status is JobStatus.PENDING
    (tmp_path / "gate").touch()
    assert waiting.result(PATIENCE)
