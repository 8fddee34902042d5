"""Tests of jobs whose hooks or `execute_job` do not end when they should."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, JobStatus, current_job
from executor_adapter.config import Settings
from executor_adapter.exceptions import ConfigurationError, InvalidJobError, JobCancelledError, JobTimeoutError
from executor_adapter.job.status import LEGAL_TRANSITIONS, TERMINAL
from executor_adapter.job.transition import Transition
from tests.contract import functions
from tests.contract.test_blocked_loops import refuse_loops
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]

submitter = contextvars.ContextVar("submitter", default="nobody")


class Endless(JobExecutor):
    """An executor whose `execute_job` runs until it is cancelled."""

    entered: threading.Event
    release: threading.Event
    cleaned_up = False

    async def execute_job(self, job: Job) -> Any:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cleaned_up = True


class IgnoresCancel(Endless):
    """An executor whose `execute_job` goes on after it is cancelled."""

    async def execute_job(self, job: Job) -> Any:
        self.entered.set()
        while not self.release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)


class Blocking(Endless):
    """An executor whose `execute_job` blocks its event loop, for jobs of the tool "blocks" only."""

    blocked: threading.Thread

    async def execute_job(self, job: Job) -> Any:
        if job.tool_name == "blocks":
            self.blocked = threading.current_thread()
            self.entered.set()
            self.release.wait()
        return await self._execute_function(job)


class EndlessErrorHook(JobExecutor):
    entered: threading.Event

    async def error_hook(self, job: Job, error: Exception) -> None:
        self.entered.set()
        await asyncio.Event().wait()


@contextlib.contextmanager
def running_executor(kind: type[JobExecutor], max_workers: int = 1, **options: Any) -> Iterator[Any]:
    """Make an executor of that class with the events that it sets and waits for; shut it down at the end."""
    executor: Any = kind(max_workers, config=Settings(), **options)
    executor.entered, executor.release = threading.Event(), threading.Event()
    try:
        yield executor
    finally:
        executor.shutdown(timeout=0)
        executor.release.set()


def short_job(**fields: Any) -> Job:
    return Job(**({"function": functions.add, "args": (1,), "retry_attempts": 0} | fields))


def assert_slot_is_free(executor: JobExecutor, **fields: Any) -> None:
    assert JobExecutor.run(executor, short_job(**fields)) == 2


# --- ended early ---


@pytest.mark.parametrize("kind", [Endless, IgnoresCancel, Blocking])
def test_a_deadline_ends_a_job_whatever_hooks_do(kind: type[JobExecutor]) -> None:
    """A deadline ends a job whatever its hooks do."""
    with running_executor(kind) as executor:
        future = executor.submit(short_job(deadline=0.2, tool_name="blocks"))
        with pytest.raises(JobTimeoutError, match=r"deadline=0\.2"):
            future.result(timeout=PATIENCE)
        assert (future.job.status, future.job.error_code) == (JobStatus.FAILED, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("kind", [Endless, IgnoresCancel, Blocking])
def test_a_cancel_ends_a_job_whatever_hooks_do(kind: type[JobExecutor]) -> None:
    """Cancelling ends a job whatever its hooks do."""
    with running_executor(kind) as executor:
        future = executor.submit(short_job(tool_name="blocks"))
        assert executor.entered.wait(PATIENCE)
        assert future.cancel()
        with pytest.raises(JobCancelledError):
            future.result(timeout=PATIENCE)
        assert future.job.status is JobStatus.CANCELLED


@pytest.mark.parametrize("kind", [Endless, IgnoresCancel, Blocking])
def test_leaving_by_an_exception_ends_hooked_jobs(kind: type[JobExecutor]) -> None:
    """Leaving the `with` block by an exception ends hooked jobs, which would go on for ever."""
    with running_executor(kind) as executor:
        future = executor.submit(short_job(tool_name="blocks"))
        assert executor.entered.wait(PATIENCE)
        with pytest.raises(KeyError), executor:
            raise KeyError("out")
        assert future.job.status is JobStatus.CANCELLED


def test_a_cancelled_hook_may_clean_up() -> None:
    """A cancelled hook may run its clean-up code."""
    with running_executor(Endless) as executor:
        future = executor.submit(short_job())
        assert executor.entered.wait(PATIENCE)
        future.cancel()
        assert isinstance(future.exception(timeout=PATIENCE), JobCancelledError)
        assert executor.cleaned_up
        assert executor.stats().abandoned_threads == 0


def test_a_job_whose_error_hook_does_not_end_is_ended() -> None:
    """A job whose error hook never returns is ended."""
    with running_executor(EndlessErrorHook) as executor:
        future = executor.submit(short_job(function=functions.fail_with_value_error, args=("no good",)))
        assert executor.entered.wait(PATIENCE)
        future.cancel()
        assert isinstance(future.exception(timeout=PATIENCE), JobCancelledError)


def test_an_error_hook_that_never_returns_is_ended_after_a_cancel() -> None:
    """An error hook gets the cancel of its attempt, and is ended if it never returns."""
    with running_executor(EndlessErrorHook) as executor:
        future = executor.submit(short_job(function=time.sleep, args=(30,)))
        wait_for(lambda: executor.running())
        future.cancel()
        assert executor.entered.wait(PATIENCE)
        assert isinstance(future.exception(timeout=PATIENCE), JobCancelledError)


def test_a_value_after_the_deadline_does_not_count() -> None:
    """A job past its deadline fails even if `execute_job` returns a value."""

    class Stubborn(Endless):
        async def execute_job(self, job: Job) -> Any:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return "all the same"

    with running_executor(Stubborn) as executor:
        future = executor.submit(short_job(deadline=0.1))
        assert isinstance(future.exception(timeout=PATIENCE), JobTimeoutError)
        assert future.job.error_code == "DEADLINE_EXCEEDED"


def test_execute_job_may_be_a_static_method() -> None:
    """A subclass whose `execute_job` needs no executor may write it as a static method."""

    class Static(JobExecutor):
        @staticmethod
        async def execute_job(job: Job) -> Any:  # type: ignore[override]
            return job.args

    with Static(1) as executor:
        assert executor.run(short_job(args=(1, 2))) == (1, 2)


def test_a_stuck_hook_is_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    """A stuck hook is abandoned: it is counted, logged with its stack, and its slot is free."""
    with running_executor(Blocking) as executor:
        future = executor.submit(short_job(deadline=0.1, tool_name="blocks"))
        assert isinstance(future.exception(timeout=PATIENCE), JobTimeoutError)
        assert executor.stats().abandoned_threads == 1
        assert "self.release.wait()" in caplog.text
        assert_slot_is_free(executor)


def test_jobs_behind_a_blocked_loop_run_once_it_is_replaced() -> None:
    """Jobs behind a blocked event loop run once the loop is replaced."""
    with running_executor(Blocking, max_workers=2) as executor:
        blocked = executor.submit(short_job(tool_name="blocks"))
        assert executor.entered.wait(PATIENCE)
        behind = [executor.submit(short_job()) for _ in range(4)]
        blocked.cancel()
        assert [future.result(timeout=PATIENCE) for future in behind] == [2] * 4


def test_a_hook_runs_once_the_system_allows_its_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job whose event loop the system refuses at first runs once it can be made."""
    refuse_loops(monkeypatch, 1)
    with running_executor(Blocking) as executor:
        assert executor.run(short_job()) == 2


def test_jobs_with_a_slot_on_a_blocked_loop_run_on_its_replacement(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Jobs with a slot on a blocked loop run on its replacement, once, with their context variables."""
    seen: list[str] = []
    blocked: list[threading.Thread] = []

    class BlockingOnce(Blocking):
        async def pre_execution_hook(self, job: Job) -> None:
            seen.append(submitter.get())

        async def execute_job(self, job: Job) -> Any:
            if job.tool_name == "blocks":
                blocked.append(threading.current_thread())
                return await super().execute_job(job)
            self.release.set()
            blocked[0].join(PATIENCE)
            return await JobExecutor.execute_job(self, job)

    go_on = threading.Event()

    def wait_for_gate() -> None:
        go_on.wait(PATIENCE)

    with running_executor(BlockingOnce, max_workers=3) as executor:
        supervisor_of(executor).call_soon(wait_for_gate)
        submitter.set("me")
        executor.submit(short_job(tool_name="blocks", deadline=0.2))
        behind = [executor.submit(short_job()) for _ in range(2)]
        go_on.set()
        assert [future.result(timeout=PATIENCE) for future in behind] == [2, 2]
        assert seen == ["me", "me"]
        assert not blocked[0].is_alive()
    assert "Exception in callback" not in caplog.text


def test_an_abandoned_loop_that_goes_on_starts_nothing() -> None:
    """An abandoned loop that goes on starts nothing, and its job stays as it ended."""
    with running_executor(Blocking) as executor:
        abandoned = executor.submit(short_job(deadline=0.1, tool_name="blocks"))
        assert isinstance(abandoned.exception(timeout=PATIENCE), JobTimeoutError)
        executor.release.set()
        wait_for(lambda: not executor.blocked.is_alive())
        assert_slot_is_free(executor)
        assert abandoned.job.status is JobStatus.FAILED
        assert abandoned.job.attempts == ()


def test_max_runtime_holds_while_hooks_block_the_loop() -> None:
    """max_runtime ends the function on time while a hook blocks the event loop."""

    class BlockingHook(JobExecutor):
        release: threading.Event

        async def pre_execution_hook(self, job: Job) -> None:
            if job.tool_name == "blocks":
                self.release.wait()

    with running_executor(BlockingHook, max_workers=2) as executor:
        future = executor.submit(short_job(function=time.sleep, args=(30,), max_runtime=0.5))
        wait_for(lambda: executor.running())
        executor.submit(short_job(tool_name="blocks"))
        wait_for(lambda: future.job.attempts)
        assert future.job.attempts[0].error_code == "TIMEOUT_ERROR"


def test_the_interpreter_s_exit_does_not_wait_for_a_blocked_hook(tmp_path: Path) -> None:
    """The interpreter exits although a hook is blocked."""
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from executor_adapter import Job, JobExecutor\n"
        "class Blocking(JobExecutor):\n"
        "    async def pre_execution_hook(self, job):\n"
        "        time.sleep(300)\n"
        "future = Blocking(1).submit(Job(function=int, deadline=0.1, retry_attempts=0))\n"
        "print(type(future.exception()).__name__)\n"
    )
    run = [sys.executable, str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        run, env=environment, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path, check=True
    )
    assert ended.stdout == "JobTimeoutError\n"


# --- what a hook sees ---


def test_a_hook_sees_the_job_of_its_attempt() -> None:
    """`current_job()` names the job and the attempt in a hook, and what a hook reports reaches the job."""

    class Reports(JobExecutor):
        async def pre_execution_hook(self, job: Job) -> None:
            assert (current_job().job_id, current_job().attempt) == (job.job_id, 1)
            current_job().progress(1, 3)

    with running_executor(Reports) as executor:
        job = short_job()
        assert executor.run(job) == 2
        assert job.progress is not None
        assert (job.progress.done, job.progress.total) == (1, 3)


def test_a_hook_cannot_wait_for_the_end_of_its_executor() -> None:
    """A hook that waits for its own executor's end fails its job in words; without waiting it ends the executor."""

    class ShutsDown(JobExecutor):
        waits = True

        async def post_execution_hook(self, job: Job, result: Any) -> None:
            self.shutdown(wait=self.waits)

    with running_executor(ShutsDown) as executor:
        with pytest.raises(RuntimeError, match=r"give shutdown\(wait=False\)"):
            executor.submit(short_job()).result(timeout=PATIENCE)
        assert not executor.is_shutting_down
        executor.waits = False
        assert executor.submit(short_job()).result(timeout=PATIENCE) == 2
        assert executor.is_shutting_down


# --- slots ---


def test_a_hook_that_fails_before_its_attempt_releases_its_slot() -> None:
    """A hook that fails before its attempt releases its slot, so that the retry can run."""

    class FailsFirst(JobExecutor):
        async def pre_execution_hook(self, job: Job) -> None:
            if job.attempt == 1:
                raise ConnectionError("not yet")

    with running_executor(FailsFirst) as executor:
        future = executor.submit(short_job(retry_attempts=1, retry_delay=0.01))
        assert future.result(timeout=PATIENCE) == 2
        assert executor.run(short_job(retry_attempts=1, retry_delay=0.01)) == 2


def test_a_hook_that_is_a_plain_function_is_refused() -> None:
    """A plain function in place of a hook is refused when the executor is made; one that wraps a coroutine is not."""

    def logged(hook: Any) -> Any:
        @functools.wraps(hook)
        def call(self: JobExecutor, job: Job) -> Any:
            return hook(self, job)

        return call

    class Wrapped(JobExecutor):
        @logged
        async def pre_execution_hook(self, job: Job) -> None:
            job.metadata["hooked"] = "yes"

    class Plain(JobExecutor):
        def post_execution_hook(self, job: Job, result: Any) -> None:  # type: ignore[override]
            """Would be awaited."""

    with running_executor(Wrapped) as executor:
        future = executor.submit(short_job())
        assert (future.result(timeout=PATIENCE), future.job.metadata) == (2, {"hooked": "yes"})
    with pytest.raises(ConfigurationError, match=r"Plain\.post_execution_hook is awaited.*async def"):
        Plain()


@pytest.mark.parametrize("blocks", [False, True])
def test_a_hook_that_waits_for_another_job_lends_its_slot(blocks: bool) -> None:
    """A hook that waits for another job lends the slot of its own."""

    class WaitsForAnother(JobExecutor):
        async def pre_execution_hook(self, job: Job) -> None:
            if job.tool_name == "waits":
                other = self.submit(short_job())
                assert (other.result(timeout=PATIENCE) if blocks else await other) == 2

    with running_executor(WaitsForAnother) as executor:
        futures = [executor.submit(short_job(tool_name="waits")) for _ in range(2)]
        assert [future.result(timeout=PATIENCE) for future in futures] == [2, 2]
        assert_slot_is_free(executor)
        assert supervisor_of(executor).dispatcher.lent == set()


@pytest.mark.parametrize("attempts_first", [False, True])
def test_an_attempt_keeps_its_slot_lent_when_its_hook_stops_waiting(attempts_first: bool) -> None:
    """A job whose hook and function wait for others lends its slot until the function waits no more."""

    class WaitsTwice(JobExecutor):
        beside: JobFuture[None]

        async def execute_job(self, job: Job) -> Any:
            if job.function != self.waits:
                return await self._execute_function(job)
            own = asyncio.ensure_future(self._execute_function(job)) if attempts_first else None
            await asyncio.sleep(0)
            until_both_wait = functools.partial(self.until_lent, job)
            self.beside = self.submit(short_job(function=until_both_wait, args=()))
            waiting = asyncio.ensure_future(self.beside)
            await asyncio.sleep(0)
            return await asyncio.gather(own or self._execute_function(job), waiting)

        def until_lent(self, job: Job) -> None:
            wait_for(lambda: job.live.assignment is not None and job in supervisor_of(self).dispatcher.lent)

        def waits(self) -> Any:
            wait_for(lambda: hasattr(self, "beside"))  # The attempt may begin before its hook submits that.
            self.submit(short_job(function=wait_for, args=(self.beside.done,)))
            return self.submit(short_job()).result(timeout=PATIENCE)

    with running_executor(WaitsTwice) as executor:
        assert executor.submit(short_job(function=executor.waits, args=())).result(timeout=PATIENCE) == [2, None]
        assert_slot_is_free(executor)
        assert supervisor_of(executor).dispatcher.lent == set()


def test_a_job_that_is_cancelled_while_its_hook_waits_gives_its_slot_back_once() -> None:
    """A job that is cancelled while its hook waits for another one gives its slot back, and that only once."""
    release = threading.Event()

    class WaitsForAnother(Endless):
        async def execute_job(self, job: Job) -> Any:
            if job.tool_name == "waits":
                await self.submit(short_job(function=self.other, args=()))
            return await self._execute_function(job)

        def other(self) -> None:
            self.entered.set()
            release.wait(PATIENCE)

    with running_executor(WaitsForAnother) as executor:
        future = executor.submit(short_job(tool_name="waits"))
        assert executor.entered.wait(PATIENCE)
        future.cancel()
        with pytest.raises(JobCancelledError):
            future.result(timeout=PATIENCE)
        release.set()
        assert_slot_is_free(executor)
        dispatcher = supervisor_of(executor).dispatcher
        assert (dispatcher.lent, dispatcher.reserved) == (set(), 0)


def test_a_function_that_execute_job_runs_twice_holds_a_slot_each_time() -> None:
    """Each run of the function inside `execute_job` holds a slot, and max_workers is kept."""

    class Twice(JobExecutor):
        async def execute_job(self, job: Job) -> Any:
            await self._execute_function(job)
            return await self._execute_function(job)

    max_running = [0]
    running: set[int] = set()
    lock = threading.Lock()

    def counted() -> int:
        with lock:
            running.add(threading.get_ident())
            max_running[0] = max(max_running[0], len(running))
        time.sleep(0.005)
        with lock:
            running.discard(threading.get_ident())
        return 2

    with running_executor(Twice, max_workers=2) as executor:
        futures = [executor.submit(short_job(function=counted, args=())) for _ in range(20)]
        assert [future.result(timeout=PATIENCE) for future in futures] == [2] * 20
        assert max_running == [2]
        assert {len(future.job.attempts) for future in futures} == {2}


def test_a_run_that_is_cancelled_while_it_waits_for_a_slot_never_starts() -> None:
    """A second run of the function is cancelled before it has a slot; the next one runs in that slot."""

    class CancelsTheSecond(JobExecutor):
        release: threading.Event

        async def execute_job(self, job: Job) -> Any:
            if job.tool_name == "blocks":
                return await self._execute_function(job)
            first = await self._execute_function(job)
            second = asyncio.ensure_future(self._execute_function(job))
            await asyncio.to_thread(wait_for, lambda: blocking.job.status is JobStatus.RUNNING)
            second.cancel()
            await asyncio.wait([second], timeout=0.01)
            self.release.set()
            with pytest.raises(asyncio.CancelledError):
                await second
            return first, await self._execute_function(job)

    with running_executor(CancelsTheSecond) as executor:
        runs = itertools.count(1)

        def count() -> int:
            executor.entered.wait(PATIENCE)
            return next(runs)

        future = executor.submit(short_job(function=count, args=()))
        wait_for(executor.running)
        blocking = executor.submit(short_job(function=executor.release.wait, args=(), tool_name="blocks"))
        executor.entered.set()
        assert future.result(timeout=PATIENCE) == (1, 2)
        assert_slot_is_free(executor, tool_name="blocks")
        assert supervisor_of(executor).dispatcher.reserved == 0


def test_an_attempt_that_is_cancelled_twice_is_over_before_the_next_one() -> None:
    """A hook that is cancelled again while it waits for the end of its attempt goes on waiting."""

    class CancelsTwice(Endless):
        async def execute_job(self, job: Job) -> Any:
            running = asyncio.ensure_future(self._execute_function(job))
            await asyncio.to_thread(self.entered.wait, PATIENCE)
            supervisor_of(self).call_soon(self.release.wait)
            for _ in range(2):
                running.cancel()
                await asyncio.wait([running], timeout=0.01)
            was_over = running.done()
            self.release.set()
            await asyncio.wait([running])
            return was_over, len(job.attempts)

    with running_executor(CancelsTwice) as executor:

        def go_on() -> None:
            executor.entered.set()
            executor.release.wait(PATIENCE)
            time.sleep(PATIENCE)

        assert executor.submit(short_job(function=go_on, args=())).result(timeout=PATIENCE) == (False, 1)


def test_a_driven_job_cancelled_before_its_worker_is_ready_never_starts(tmp_path: Path) -> None:
    """A driven job that is cancelled before its worker is ready never starts."""
    with running_executor(JobExecutor) as executor:
        for n in range(3):
            driver = executor.drive(
                short_job(pool="process", function=functions.append_line, args=(str(tmp_path / f"{n}"), "ran"))
            )
            driver.acquire().result(timeout=PATIENCE)
            both_asked = threading.Event()
            supervisor_of(executor).call_soon(lambda both_asked=both_asked: both_asked.wait(PATIENCE))
            attempt = driver.attempt()
            driver.cancel()
            both_asked.set()
            error = attempt.exception(timeout=PATIENCE)
            driver.fail(error or LookupError("it ran"))  # Else the executor would wait for the driver.
            assert isinstance(error, JobCancelledError)
        executor.run(short_job(pool="process"))
        assert list(tmp_path.iterdir()) == []


def test_a_job_that_its_caller_drives_is_refused() -> None:
    """An executor with hooks refuses to drive a job: the attempts of a job task would pass none of them."""
    with running_executor(Wavering) as executor, pytest.raises(InvalidJobError, match="hooks of Wavering: use"):
        executor.drive(short_job()).fail(LookupError("it was driven"))
    assert executor.jobs() == []


# --- races ---


class Wavering(JobExecutor):
    """An executor whose hooks and function take about as long as the test waits before it cancels."""

    async def pre_execution_hook(self, job: Job) -> None:
        await asyncio.sleep(job.metadata["pre"])

    async def post_execution_hook(self, job: Job, result: Any) -> None:
        await asyncio.sleep(job.metadata["post"])

    async def error_hook(self, job: Job, error: Exception) -> None:
        await asyncio.sleep(job.metadata["post"])


def wavering_job(draw: random.Random) -> Job:
    deadline = draw.choice([None, None, draw.uniform(0.001, 0.03)])
    return short_job(
        function=draw.choice([functions.add, functions.fail_with_value_error]),
        metadata={"pre": draw.uniform(0, 0.005), "post": draw.uniform(0, 0.005)},
        retry_attempts=1,
        retry_delay=draw.uniform(0.001, 0.01),
        deadline=deadline,
    )


# Python runs a cancelled thread's exception in whatever it does just then: in a callback of garbage it is only logged.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("seed", range(4))
def test_each_job_ends_once_when_its_end_and_its_cancel_race(seed: int) -> None:
    """When end and cancel race, transitions stay legal and ordered, and every slot becomes free."""
    draw = random.Random(seed)
    transitions: dict[Job, list[JobStatus]] = defaultdict(lambda: [JobStatus.PENDING])

    def observe(transition: Transition) -> None:
        history = transitions[transition.job]
        if transition.status is not JobStatus.PENDING:
            assert transition.status in LEGAL_TRANSITIONS[history[-1]]
            history.append(transition.status)

    futures: list[JobFuture] = []
    with running_executor(Wavering, max_workers=3, observers=(observe,)) as executor:
        for _ in range(60):
            futures.append(executor.submit(wavering_job(draw)))
            time.sleep(draw.uniform(0, 0.004))
            draw.choice(futures[-6:]).cancel()
        for future in futures:
            future.exception(timeout=PATIENCE)
        stats = executor.stats()
        assert (stats.jobs_running, stats.jobs_pending, stats.jobs_retrying) == (0, 0, 0)
        dispatcher = supervisor_of(executor).dispatcher
        wait_for(lambda: dispatcher.reserved == 0)
        assert stats.abandoned_threads == 0
    for future in futures:
        assert transitions[future.job][-1] is future.job.status
        assert [status in TERMINAL for status in transitions[future.job]].count(True) == 1


def test_an_observer_gets_all_transitions_before_it_is_removed() -> None:
    """`remove_observer` returns after the observer got all transitions up to now."""
    transitions: list[Transition] = []
    gate = threading.Event()

    def wait_for_gate() -> None:
        gate.wait(PATIENCE)

    with running_executor(JobExecutor) as executor:
        executor.add_observer(transitions.append)
        driver = executor.drive(short_job())
        driver.acquire().result(timeout=PATIENCE)
        supervisor_of(executor).call_soon(wait_for_gate)
        driver.complete(1)
        threading.Timer(0.2, gate.set).start()
        executor.remove_observer(transitions.append)
        assert [transition.status for transition in transitions] == ["pending", "running", "completed"]


def test_an_observer_may_remove_itself() -> None:
    """An observer may remove itself while it is called."""
    transitions: list[JobStatus] = []
    with running_executor(JobExecutor) as executor:

        def once(transition: Transition) -> None:
            transitions.append(transition.status)
            executor.remove_observer(once)

        executor.add_observer(once)
        executor.run(short_job())
    assert transitions == ["pending"]
