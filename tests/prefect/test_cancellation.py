"""A flow run that was started by hand is cancelled on the server: its own process ends it."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import wait
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import CancelledRun

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.prefect import JobTaskRunner, PrefectMirror, job_task, run_jobs
from executor_adapter.prefect.cancellation import flow_end, watcher
from executor_adapter.prefect.cancellation.watcher import flow_run_watcher, watch_flow_run
from executor_adapter.prefect.runners import engine_threads
from tests.prefect.conftest import Api, cancel, own_id
from tests.waiting import PATIENCE, wait_for


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll more often and wait less, because these tests are not about durations; flows end by themselves."""
    monkeypatch.setattr(watcher, "POLL_INTERVAL", 0.2)
    monkeypatch.setattr(flow_end, "INTERRUPT_TIMEOUT", PATIENCE)
    monkeypatch.setattr(flow_end, "QUIET_SECONDS", 1.0)


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a flow that does not end by itself be interrupted after a second."""
    monkeypatch.setattr(flow_end, "INTERRUPT_TIMEOUT", 1.0)


def cancel_soon(url: str, flow_run_id: UUID, state: str = "CANCELLING") -> None:
    """Cancel the flow run in half a second, from another thread."""
    threading.Timer(0.5, cancel, (url, flow_run_id, state)).start()


def own_state_name() -> str | None:
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    assert context.flow_run.state is not None
    return context.flow_run.state.name


def flow_run_state(api: Api, flow_run_id: UUID) -> str:
    return str(api.get(f"/flow_runs/{flow_run_id}")["state_name"])


@job_task(pool="thread", retry_attempts=3)
def slow(_: int = 0) -> None:
    for _ in range(6000):
        time.sleep(0.01)


@pytest.fixture
def ended(prefect_api: str, api: Api) -> Callable[[UUID], None]:
    """Return a function that asserts that a flow run and all its task runs are Cancelled, and these say why."""

    def check(flow_run_id: UUID) -> None:
        wait_for(lambda: flow_run_state(api, flow_run_id) == "Cancelled")
        wait_for(lambda: {run["state_name"] for run in api.task_runs(flow_run_id)} == {"Cancelled"})
        runs = api.task_runs(flow_run_id)
        assert all(run["end_time"] for run in runs)
        assert {run["state"]["message"] for run in runs} == {"CANCELLED: its flow run was cancelled"}

    return check


@pytest.mark.parametrize("asked", ["CANCELLING", "CANCELLED"])
def test_a_job_that_is_called_directly_is_cancelled_and_the_flow_with_it(
    prefect_api: str, ended: Callable[[UUID], None], asked: str
) -> None:
    """The call of a cancelled job task raises, and the flow's cancellation hooks are called."""
    ids: list[UUID] = []
    hooks: list[str] = []

    def hook(flow: Any, flow_run: Any, state: State[Any]) -> None:
        hooks.append(state.name or "")

    @flow(on_cancellation=[hook])
    def run() -> None:
        ids.append(own_id())
        cancel_soon(prefect_api, ids[0], asked)
        slow()

    with JobExecutor(2), pytest.raises(JobCancelledError, match=r"^its flow run was cancelled$"):
        run()
    if asked == "CANCELLING":
        assert hooks == ["Cancelling"]
        ended(ids[0])


@pytest.mark.parametrize(
    ("by_signal", "below"),
    [(False, 0), (True, 0), (True, 2)],
    ids=["by hand", "by a signal", "by a signal two subflows above"],
)
def test_the_jobs_of_run_jobs_say_that_their_flow_run_was_cancelled(
    prefect_api: str, api: Api, mocker: Any, by_signal: bool, below: int
) -> None:
    """Each job's own message and that of its task run name the flow run's cancel, which a signal may have brought.

    The cancel of a flow run is that of its subflow runs, however deep and however new they are.
    """
    jobs = [Job(function=slow.fn, pool="thread") for _ in range(3)]
    ids: list[UUID] = []

    def cancel_it() -> None:
        wait_for(lambda: any(job.status is JobStatus.RUNNING for job in jobs))
        if not below:
            flow_run_watcher.ask()  # So that no poll of before falls between the cancel and the signal.
        cancel(prefect_api, ids[0], "CANCELLING")
        if by_signal:  # As a runner does; the server is asked only because of it.
            signal.raise_signal(signal.SIGINT)

    @flow
    def run(below: int) -> None:
        ids.append(own_id())
        if below:
            run(below - 1)
            return
        threading.Thread(target=cancel_it).start()
        run_jobs(jobs, executor=executor)

    mocker.patch.object(watcher, "POLL_INTERVAL", PATIENCE if by_signal else 0.2)
    mocker.patch.object(sys.modules[type(flow_run_watcher).__module__], "ASK_TIMEOUT", PATIENCE)
    with JobExecutor(2) as executor, pytest.raises(KeyboardInterrupt if by_signal else JobCancelledError):
        run(below)
    mocker.stopall()
    flow_run_watcher.ask()  # From now on the watcher polls as before.
    assert {job.error_message for job in jobs} == {"its flow run was cancelled"}
    runs = api.task_runs(ids[-1])
    assert {run["state"]["message"] for run in runs} == {"CANCELLED: its flow run was cancelled"}
    said = "Job cancelled: its flow run was cancelled"
    wait_for(lambda: sum(said in api.messages(run["id"]) for run in runs) == 2)  # The third one never started.


@pytest.mark.parametrize("by_signal", [False, True], ids=["by hand", "by a signal"])
def test_the_jobs_of_an_observed_executor_say_that_their_flow_run_was_cancelled(
    prefect_api: str, api: Api, mocker: Any, by_signal: bool
) -> None:
    """They end with the flow run in which their mirror was made, whoever submits them, and no further one starts."""
    jobs = [Job(function=slow.fn, pool="thread") for _ in range(3)]
    ids: list[UUID] = []
    begun: list[str] = []
    later = Job(function=begun.append, args=("later",), pool="thread")

    def cancel_it() -> None:
        wait_for(lambda: any(job.status is JobStatus.RUNNING for job in jobs))
        flow_run_watcher.ask()
        cancel(prefect_api, ids[0], "CANCELLING")
        if by_signal:
            signal.raise_signal(signal.SIGINT)

    @flow
    def run() -> None:
        ids.append(own_id())
        with PrefectMirror() as mirror, JobExecutor(2, observers=[mirror]) as executor:
            futures = [executor.submit(job) for job in jobs]
            threading.Thread(target=cancel_it).start()
            if not by_signal:
                wait(futures)
                with pytest.raises(JobCancelledError, match=r"^its flow run was cancelled$"):
                    executor.run(later)
            futures[0].result()

    mocker.patch.object(watcher, "POLL_INTERVAL", PATIENCE if by_signal else 0.2)
    mocker.patch.object(watcher, "ASK_TIMEOUT", PATIENCE)
    with pytest.raises(KeyboardInterrupt if by_signal else JobCancelledError):
        run()
    mocker.stopall()
    flow_run_watcher.ask()
    assert {job.error_message for job in jobs} == {"its flow run was cancelled"}
    assert {run["state"]["message"] for run in api.task_runs(ids[0])} == {"CANCELLED: its flow run was cancelled"}
    assert not begun
    if not by_signal:
        wait_for(lambda: flow_run_state(api, ids[0]) == "Cancelled")


def test_a_flow_run_is_watched_until_it_ends_whether_or_not_its_mirror_is_closed(prefect_api: str, mocker: Any) -> None:
    """The server is asked nothing more of a flow run that has ended with an open mirror."""
    mocker.patch.object(watcher, "POLL_INTERVAL", 0.01)
    real, asked = watcher.Records.flow_runs, list[str]()

    def flow_runs(records: watcher.Records, ids: Iterable[str]) -> Any:
        asked.extend(found := list(ids))
        return real(records, found)

    @flow
    def run() -> str:
        mirrors.append(PrefectMirror())
        wait_for(lambda: str(own_id()) in asked)
        return str(own_id())

    mirrors: list[PrefectMirror] = []
    mocker.patch.object(watcher.Records, "flow_runs", flow_runs)
    flow_run_id = run()
    flow_run_watcher.ask()
    asked.clear()
    flow_run_watcher.ask()
    assert flow_run_id not in asked
    mirrors[0].close()


@pytest.mark.parametrize("below", [0, 1], ids=["a flow", "a flow whose jobs are all in a subflow"])
def test_a_flow_whose_runner_ends_it_knows_that_it_was_cancelled(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch, below: int
) -> None:
    """Prefect logs the state that a flow knows when its runner ends it: Cancelling, not Running."""
    states: list[str | None] = []

    @flow
    def run(below: int, is_managed: bool = True) -> None:
        if is_managed:
            monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(own_id()))  # As a runner does.
            cancel_soon(prefect_api, own_id())
        with pytest.raises(JobCancelledError):
            run(below - 1, is_managed=False) if below else slow()
        states.append(own_state_name())
        if not is_managed:
            raise JobCancelledError("it was cancelled")

    with JobExecutor(2):
        run(below, return_state=True)
    assert states == ["Cancelling"] * (below + 1)


@pytest.mark.usefixtures("interrupts")
def test_a_flow_that_goes_on_is_interrupted_and_the_program_goes_on(
    prefect_api: str, ended: Callable[[UUID], None]
) -> None:
    """The hooks of an interrupted flow are called, its caller gets CancelledRun, and the executor still works."""
    ids: list[UUID] = []
    hooks: list[str] = []

    def hook(flow: Any, flow_run: Any, state: State[Any]) -> None:
        hooks.append(state.name or "")

    @flow(on_cancellation=[hook])
    def run() -> None:
        ids.append(own_id())
        slow.submit()
        cancel_soon(prefect_api, ids[0])
        time.sleep(3600)

    @flow
    def another() -> str:
        return str(job_task(lambda: "still here", pool="thread").submit().result())

    with JobExecutor(2):
        with pytest.raises(CancelledRun):
            run()
        assert another() == "still here"
    assert hooks == ["Cancelled"]
    ended(ids[0])


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("below", [0, 1], ids=["a flow", "a subflow"])
def test_a_flow_is_interrupted_while_the_server_stalls(
    prefect_api: str, api: Api, ended: Callable[[UUID], None], mocker: Any, below: int
) -> None:
    """It ends although the server answers nothing more of its cancel, and is Cancelled once the server answers."""
    ids: list[UUID] = []
    answers, asked = threading.Event(), threading.Event()
    real = SyncPrefectClient.read_flow_run

    def read(client: SyncPrefectClient, flow_run_id: UUID) -> Any:
        if not answers.is_set() and threading.current_thread().name == "cancelled-flow-run":
            asked.set()
            raise httpx.ReadTimeout("stalled")
        return real(client, flow_run_id)

    mocker.patch.object(SyncPrefectClient, "read_flow_run", read)

    @flow
    def run(below: int) -> None:
        ids.append(own_id())
        if below:
            run(below - 1)
            return
        slow.submit()
        cancel_soon(prefect_api, ids[0])
        threading.Event().wait(PATIENCE)
        pytest.fail("it was not interrupted")

    with JobExecutor(2), pytest.raises(CancelledRun):
        run(below)
    assert asked.wait(PATIENCE)
    assert flow_run_state(api, ids[0]) == "Cancelling"
    answers.set()
    ended(ids[-1])
    wait_for(lambda: flow_run_state(api, ids[0]) == "Cancelled")


def join_told() -> None:
    """Wait for the threads that tell the server of cancelled flow runs."""
    for thread in threading.enumerate():
        if thread.name == "cancelled-flow-run":
            thread.join(PATIENCE)


def test_a_program_that_ends_waits_once_for_a_server_that_is_away(
    mocker: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a flow run and those above it has one limit for all requests once the main thread has ended.

    It is asked by threads for which the interpreter waits, although a daemon thread starts them. The log says so, once.
    """
    join_told()  # Those of the tests before ask, too.
    asked: list[str] = []
    daemons: list[bool] = []
    seconds = itertools.count()

    def refuse() -> Any:
        asked.append(threading.current_thread().name)
        daemons.append(threading.current_thread().daemon)
        raise httpx.ConnectError("refused")

    mocker.patch.object(flow_end.ServerApi, "connected", refuse)
    mocker.patch.multiple(flow_end, RECONNECT_INTERVAL=0, QUIET_SECONDS=0, END_TIMEOUT=200)
    mocker.patch.object(flow_end, "time", SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda _: None))
    mocker.patch.object(threading, "main_thread", return_value=SimpleNamespace(is_alive=lambda: False))
    run = flow_end.WatchedFlowRun(uuid4(), {}, threading.Condition())
    watch = threading.Thread(target=run.begin_end, args=([run.lineage[0], uuid4(), uuid4()],), daemon=True)
    watch.start()
    watch.join()
    join_told()
    assert 8 <= asked.count("cancelled-flow-run") < 300
    assert caplog.text.count("waiting at most 200 s to tell the Prefect server that flow run") == 1
    assert not any(daemons)


def test_a_cancel_ends_the_jobs_where_no_thread_can_be_started(prefect_api: str, mocker: Any) -> None:
    """A system that starts no thread to end the flow run with has its jobs ended all the same."""
    begin, refused = threading.Thread.start, threading.Event()

    def start(thread: threading.Thread) -> None:
        if thread.name == "cancelled-flow-run" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        begin(thread)

    @job_task(pool="thread", retry_attempts=0)
    def endless() -> None:
        threading.Event().wait(PATIENCE)

    @flow
    def run() -> None:
        waits = endless.submit()
        cancel(prefect_api, own_id())
        waits.result()

    mocker.patch.object(threading.Thread, "start", start)
    with JobExecutor(max_workers=1), pytest.raises(JobCancelledError):
        run()
    assert refused.is_set()


def test_no_job_starts_after_the_cancel(prefect_api: str, ended: Callable[[UUID], None]) -> None:
    """After the cancel, later calls and submissions raise, even in a flow that catches all exceptions."""
    ids: list[UUID] = []
    refused: list[type[BaseException]] = []

    @flow(task_runner=JobTaskRunner(2))
    def run() -> None:
        ids.append(own_id())
        future = slow.submit()
        cancel_soon(prefect_api, ids[0])
        future.wait()
        for again in (slow.submit, slow):
            try:
                again()
            except Exception as error:
                refused.append(type(error))

    run()
    assert refused == [JobCancelledError, JobCancelledError]
    ended(ids[0])


@pytest.mark.parametrize("runner", [None, JobTaskRunner(2)], ids=["Prefect's runner", "JobTaskRunner"])
def test_a_task_that_is_being_submitted_is_cancelled_too(prefect_api: str, api: Api, mocker: Any, runner: Any) -> None:
    """A cancel between the making of a task run and that of its job cancels the task."""
    begun: list[int] = []
    futures: list[Any] = []
    made: list[Any] = []
    real = engine_threads.create_task_run

    def make(*args: Any) -> Any:
        made.append(real(*args))
        if len(made) == 2:
            cancel(prefect_api, own_id())
            futures[0].wait()
        return made[-1]

    mocker.patch.object(engine_threads, "create_task_run", side_effect=make)

    @job_task(pool="thread", retry_attempts=0)
    def work(x: int) -> None:
        begun.append(x)
        slow.fn()

    @flow(task_runner=runner)
    def run() -> None:
        futures.append(work.submit(0))
        futures.append(work.submit(1))
        futures[1].wait()

    with JobExecutor(2):
        run()
    assert begun in ([], [0])
    assert [future.state.name for future in futures] == ["Cancelled", "Cancelled"]
    assert api.state_names(futures[1].task_run_id) == ["Pending", "Cancelled"]


@pytest.mark.usefixtures("interrupts")
def test_an_async_flow_is_cancelled(prefect_api: str, ended: Callable[[UUID], None]) -> None:
    """The asyncio task of an async flow is cancelled, and its caller gets CancelledRun."""
    ids: list[UUID] = []

    @flow
    async def run() -> None:
        ids.append(own_id())
        slow.submit()
        cancel_soon(prefect_api, ids[0])
        await asyncio.sleep(60)

    with JobExecutor(2), pytest.raises(CancelledRun):
        asyncio.run(run())
    ended(ids[0])


@pytest.mark.parametrize("wrapped", [True, False], ids=["asyncio.wrap_future", "await"])
def test_an_async_flow_that_awaits_a_job_of_its_own_executor_is_cancelled(
    prefect_api: str, ended: Callable[[UUID], None], wrapped: bool
) -> None:
    """It is no crash: the flow run becomes Cancelled, and its cancellation hooks are called once."""
    ids: list[UUID] = []
    hooks: list[str] = []

    def hook(flow: Any, flow_run: Any, state: State[Any]) -> None:
        hooks.append(state.name or "")

    @flow(on_cancellation=[hook], on_crashed=[hook])
    async def run() -> None:
        ids.append(own_id())
        with PrefectMirror() as mirror, JobExecutor(2, observers=[mirror]) as executor:
            future = executor.submit(Job(function=slow.fn, pool="thread"))
            cancel_soon(prefect_api, ids[0])
            await (asyncio.wrap_future(future) if wrapped else future)

    with pytest.raises(CancelledRun if wrapped else JobCancelledError):
        asyncio.run(run())
    assert hooks == ["Cancelled" if wrapped else "Cancelling"]
    ended(ids[0])


def test_a_subflow_run_ends_with_the_flow_run_that_is_cancelled(
    prefect_api: str, api: Api, ended: Callable[[UUID], None]
) -> None:
    """A cancelled flow run and its subflow run both become Cancelled."""
    ids: list[UUID] = []

    @flow
    def below() -> None:
        ids.append(own_id())
        slow.submit().result()

    @flow
    def above() -> None:
        ids.append(own_id())
        cancel_soon(prefect_api, ids[0])
        below()

    with JobExecutor(2), pytest.raises(JobCancelledError):
        above()
    ended(ids[1])
    wait_for(lambda: flow_run_state(api, ids[0]) == "Cancelled")


def test_a_subflow_run_that_fails_before_it_is_known_to_be_cancelling_is_cancelled(
    prefect_api: str, mocker: Any, ended: Callable[[UUID], None]
) -> None:
    """A subflow run that the server accepted as failed before the cancel arrived ends Cancelled."""
    ids: list[UUID] = []
    failed = threading.Event()
    real = flow_end.Cancelling

    def late(**fields: Any) -> State[Any]:
        assert failed.wait(PATIENCE)
        return real(**fields)

    mocker.patch.object(flow_end, "Cancelling", side_effect=late)

    @flow
    def below() -> None:
        slow()

    @flow
    def above() -> None:
        cancel_soon(prefect_api, own_id())
        state = below(return_state=True)
        assert state.is_failed()
        ids.append(state.state_details.flow_run_id)
        failed.set()

    with JobExecutor(2):
        above(return_state=True)
    ended(ids[0])


def test_an_unreachable_server_is_polled_again(prefect_api: str, mocker: Any) -> None:
    """A cancel is noticed once an unreachable server answers again."""
    heard = threading.Event()
    read = mocker.patch.object(watcher.Records, "flow_runs", side_effect=[OSError("away"), httpx.ConnectError("away")])

    @flow
    def run() -> None:
        watch = watch_flow_run(own_id(), heard.set)
        wait_for(lambda: read.call_count >= 2)
        mocker.stop(read)
        cancel_soon(prefect_api, own_id())
        assert heard.wait(PATIENCE)
        watch.close()

    run(return_state=True)


def test_one_thread_polls_for_one_flow_run_after_another(prefect_api: str, mocker: Any) -> None:
    """The thread waits while no flow run is watched, and sees the cancel of the next one."""
    mocker.patch.object(watcher, "POLL_INTERVAL", 0.01)
    threads: list[set[threading.Thread]] = []

    @flow
    def run() -> None:
        heard = threading.Event()
        watch = watch_flow_run(own_id(), heard.set)
        cancel_soon(prefect_api, own_id())
        assert heard.wait(PATIENCE)
        watch.close()
        threads.append({thread for thread in threading.enumerate() if thread.name == "cancel-watch"})

    for _ in range(2):
        run(return_state=True)
    assert threads[0] == threads[1] != set()


def test_a_flow_whose_cancel_could_not_be_watched_is_watched_by_its_next_task(
    prefect_api: str, ended: Callable[[UUID], None], mocker: Any
) -> None:
    """A system that starts no thread to watch for a cancel refuses that task; once it does, a cancel ends the jobs."""
    begin, refused, ids = threading.Thread.start, threading.Event(), list[UUID]()

    def start(thread: threading.Thread) -> None:
        if thread.name == "cancel-watch" and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        begin(thread)

    @job_task(pool="thread", retry_attempts=0)
    def endless() -> None:
        threading.Event().wait(PATIENCE)

    @flow
    def run() -> None:
        ids.append(own_id())
        with pytest.raises(RuntimeError, match="can't start new thread"):
            endless.submit()
        waits = endless.submit()
        cancel(prefect_api, ids[0])
        waits.result()

    mocker.patch.dict(flow_run_watcher.answers, clear=True)
    mocker.patch.object(threading.Thread, "start", start)
    with JobExecutor(max_workers=1), pytest.raises(JobCancelledError):
        run()
    assert refused.is_set()
    ended(ids[0])
