"""PrefectMirror on any executor, and with servers of all kinds: unreachable, protected, Prefect Cloud, embedded."""

from __future__ import annotations

import _thread
import os
import socket
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID, uuid4, uuid5

import httpx
import pytest
from prefect import flow
from prefect.context import FlowRunContext
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy
from executor_adapter.prefect import MirrorReport, PrefectMirror, job_task, run_jobs
from executor_adapter.prefect.mirror.events import flow_run_facts
from executor_adapter.prefect.mirror.mirror import SenderThread
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.server import ServerApi, read_flow_run_facts
from executor_adapter.prefect.mirror.timeline import Step, UnsentChanges
from tests.benchmarks.apart import apart
from tests.benchmarks.prefect_server import prefect_server
from tests.prefect.conftest import Api, own_id
from tests.prefect.fake_cloud import at_cloud
from tests.prefect.fake_server import FakeServer
from tests.prefect.many_jobs import failures_of, run_many_jobs, work
from tests.prefect.sample_events import FAILED, event, jobs_in
from tests.prefect.server_proxy import ServerProxy
from tests.servers import create_database

ONCE = RetryPolicy(retry_attempts=1, retry_delay=0.1)


def jobs(count: int, name: str) -> list[Job]:
    return [Job(function=dict, pool="thread", job_id=f"{name}-{number}") for number in range(count)]


def run_mirrored(mirror: PrefectMirror, todo: list[Job]) -> None:
    with JobExecutor(2, observers=[mirror]) as executor:
        for future in [executor.submit(job) for job in todo]:
            future.exception()


def test_the_jobs_of_any_executor_are_task_runs(api: Api) -> None:
    """The jobs of any executor, in a flow or not, are task runs with all their states."""
    job = Job(function=work, args=(1,), pool="thread", retry=ONCE, job_id="of-no-flow")
    with PrefectMirror(history="full") as mirror:
        run_mirrored(mirror, [job])
    assert mirror.report() == MirrorReport(jobs=1, recorded=1)
    (run,) = api.named("work-of-no-flow")
    assert (run["flow_run_id"], run["state_name"], run["run_count"]) == (None, "Completed", 2)
    assert api.state_names(run["id"]) == ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"]


@dataclass
class Fetch:
    """A callable that has no hash, as dataclasses and models have none."""

    url: str

    def __call__(self) -> str:
        return self.url


def test_a_job_may_call_an_object_without_a_hash(api: Api) -> None:
    """Whatever an executor runs is mirrored."""
    with PrefectMirror() as mirror:
        run_mirrored(mirror, [Job(function=Fetch("here"), pool="thread", job_id="of-an-object")])
    assert mirror.report() == MirrorReport(jobs=1, recorded=1)
    assert [run["state_name"] for run in api.named("Fetch-of-an-object")] == ["Completed"]


class Hooked(JobExecutor):
    """An executor with a hook, whose jobs are those of its submitters."""

    async def pre_execution_hook(self, job: Job) -> None:
        """Do nothing."""


def test_the_jobs_of_an_executor_with_hooks_are_task_runs(api: Api) -> None:
    """The jobs of an executor with hooks are shown as those of any other one."""
    with PrefectMirror(history="full") as mirror, Hooked(2, observers=[mirror]) as executor:
        executor.run(Job(function=dict, pool="thread", job_id="hooked"))
    assert mirror.report() == MirrorReport(jobs=1, recorded=1)
    (run,) = api.named("dict-hooked")
    assert api.state_names(run["id"]) == ["Pending", "Running", "Completed"]


@pytest.mark.parametrize("own", [False, True])
def test_run_jobs_in_a_mirrored_executor_shows_each_job_once(api: Api, own: bool) -> None:
    """The jobs of `run_jobs` and of job tasks have each state once, also where their executor has a mirror itself."""

    @flow
    def run() -> UUID:
        with PrefectMirror(history="full") as mirror, JobExecutor(2, observers=[mirror]) as executor:
            run_jobs(jobs(3, "once"), executor=executor, mirror=mirror if own else None)
            job_task(lambda: None, pool="thread", retry_attempts=0)()
        assert mirror.report() == MirrorReport(jobs=3 * own, recorded=3 * own)
        return own_id()

    runs = api.task_runs(run())
    assert len(runs) == 4
    for each in runs:
        assert api.state_names(each["id"]) == ["Pending", "Running", "Completed"]


@pytest.mark.parametrize("mirrors", [1, 2])
def test_an_executor_with_two_mirrors_shows_each_job_once(api: Api, mirrors: int) -> None:
    """Two mirrors of an executor, or one that is given twice, report the states of its jobs once."""
    with ExitStack() as stack:
        given = [stack.enter_context(PrefectMirror(history="full", stall_timeout=5.0)) for _ in range(mirrors)]
        with JobExecutor(2, observers=[*given, given[0]]) as executor:
            executor.run(Job(function=dict, pool="thread", job_id=f"shown-by-{mirrors}"))
    assert [each.report() for each in given] == [MirrorReport(jobs=1, recorded=1)] * mirrors
    (run,) = api.named(f"dict-shown-by-{mirrors}")
    assert api.state_names(run["id"]) == ["Pending", "Running", "Completed"]


def fail_to_open(path: str) -> None:
    raise FileNotFoundError(f"no {path}")


def test_an_error_message_that_no_server_can_store_does_not_hold_up_others(api: Api) -> None:
    """Half a surrogate pair in an error message, which a server would refuse, does not hold up other events."""
    broken = Job(function=fail_to_open, args=("caf\udce9",), pool="thread", retry_attempts=0, job_id="broken")
    with PrefectMirror(stall_timeout=5.0) as mirror:
        run_mirrored(mirror, [broken, *jobs(3, "beside")])
    assert mirror.report() == MirrorReport(jobs=4, recorded=4)
    (run,) = api.named("fail_to_open-broken")
    assert run["state"]["message"] == "Task run encountered an exception FileNotFoundError: no caf?"


def test_jobs_that_prefects_engine_reports_are_not_mirrored(api: Api) -> None:
    """A job task under a mirrored executor is one task run, not two."""

    @job_task(pool="thread")
    def one() -> int:
        return 1

    with PrefectMirror() as mirror, JobExecutor(2, observers=[mirror]):
        assert flow(lambda: one.submit().result())() == 1
    assert mirror.report().jobs == 0


def test_a_mirror_refuses_the_jobs_of_a_second_flow_run(prefect_api: str) -> None:
    """A mirror refuses the jobs of a second flow run and names the fix."""
    mirror = PrefectMirror()
    run = flow(lambda: run_jobs(jobs(1, "once"), mirror=mirror))
    run()
    with pytest.raises(RuntimeError, match="make one for each flow run"):
        run()
    mirror.close()


def test_a_server_that_cannot_be_reached_for_a_while_gets_all_states(api: Api) -> None:
    """Closing the mirror waits for a server that cannot be reached for a while."""
    with _unreachable() as (proxy, url), temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror()
        run_mirrored(mirror, jobs(20, "late"))
        threading.Timer(2.0, proxy.open).start()
        assert mirror.close().complete
    assert {api.named(f"dict-late-{number}")[0]["state_name"] for number in range(20)} == {"Completed"}


@pytest.mark.parametrize("was_reachable", [False, True])
def test_a_server_that_stays_unreachable_is_given_up_in_time(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch, was_reachable: bool
) -> None:
    """A server that stays unreachable is given up in time: neither attempts nor earlier records count as progress."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.RECONNECT_INTERVAL", 0.1)
    with _unreachable() as (proxy, url), temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(
            stall_timeout=3.0, outbox=OutboxFile(url, tmp_path / "outbox.db")
        )  # Each attempt takes half of it.
        if was_reachable:
            proxy.open()
            run_mirrored(mirror, jobs(1, "told"))
            assert mirror.drain(30.0).complete
            proxy.close()
        run_mirrored(mirror, jobs(3, "given-up"))
        assert len(mirror.close().kept) == 3


def test_a_state_that_comes_as_the_mirror_is_closed_is_reported_by_another_one(
    tmp_path: Path, prefect_api: str, mocker: Any
) -> None:
    """What is appended after the last states were written to the outbox is not taken: its engine makes a new mirror."""
    mirror = PrefectMirror(outbox=OutboxFile("server", tmp_path / "outbox.db"))
    history = mirror.add_job(Job(function=dict))
    append = UnsentChanges.append

    def append_late(unsent: UnsentChanges, *what: Any) -> None:
        mirror.close(timeout=0)
        append(unsent, *what)

    mocker.patch.object(UnsentChanges, "append", append_late)
    assert not mirror.enqueue_step(history, Step(JobStatus.COMPLETED, 1_000_000.0, 1, None, None))


def test_an_interrupted_close_keeps_the_unrecorded_states(tmp_path: Path, prefect_api: str) -> None:
    """An interrupted close keeps the unrecorded states, and the interrupt reaches the caller."""
    with _unreachable() as (_, url), temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(outbox=OutboxFile(url, tmp_path / "outbox.db"))
        run_mirrored(mirror, jobs(3, "interrupted"))
        threading.Timer(0.3, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            mirror.close()
    assert len(mirror.report().kept) == 3


def test_a_state_that_was_left_does_not_replace_that_of_a_later_run(api: Api, tmp_path: Path) -> None:
    """A state that was left does not replace that of a retried flow run with the same task runs."""
    job = {"args": (1,), "pool": "thread", "retry_attempts": 0, "job_id": "again"}
    task_runs: list[str] = []

    @flow(retries=1)
    def twice() -> None:
        task_runs.append(str(uuid5(FlowRunContext.get().flow_run.id, "again")))  # type: ignore[union-attr]
        mirror = PrefectMirror(outbox=OutboxFile("server", tmp_path / "outbox.db"), stall_timeout=0.5)
        if len(task_runs) == 1:
            with _unreachable() as (_, url), temporary_settings({PREFECT_API_URL: url}):
                run_jobs([Job(function=work, **job)], mirror=mirror)
            assert mirror.close(0.0).kept == ("again",)
            raise ConnectionError("down")
        mirror = PrefectMirror(outbox=OutboxFile("server", tmp_path / "outbox.db"))
        run_jobs([Job(function=str, **job)], mirror=mirror)
        assert mirror.close().complete

    twice()
    assert jobs_in(tmp_path / "outbox.db") == []
    assert api.task_run(task_runs[1])["state_name"] == "Completed"


def test_a_flow_run_whose_deployment_was_deleted_is_mirrored(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """Task runs of a flow run without its deployment are related to the flow run alone."""

    @flow
    def undeployed() -> MirrorReport:
        FlowRunContext.get().flow_run.deployment_id = uuid4()  # type: ignore[union-attr]
        mirror = PrefectMirror(stall_timeout=10.0)
        run_jobs(jobs(3, "undeployed"), mirror=mirror)
        return mirror.close()

    assert undeployed().complete
    assert not [record for record in caplog.records if record.name == "executor_adapter.prefect" and record.exc_info]


def test_a_server_that_does_not_answer_does_not_delay_the_end(tmp_path: Path, prefect_api: str) -> None:
    """With a server that accepts connections but never answers, the mirror closes in time and keeps the states."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_REQUEST_TIMEOUT: 3600.0}):
            mirror = PrefectMirror(outbox=OutboxFile(url, tmp_path / "outbox.db"))
            run_mirrored(mirror, jobs(3, "unheard"))
            assert len(mirror.close(timeout=1.0).kept) == 3


def test_a_small_flow_does_not_wait_for_the_states_of_others(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow gives states that others have left a few seconds; the rest stays for another process."""

    class RecordsNoFailures(FakeServer):
        def record(self, limit: int | None = None) -> None:
            self.queue.extend([each for each in _popped(self.queue) if not each["event"].endswith("Failed")])
            super().record(limit)

    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.INHERITED_SECONDS", 0.5)
    left = OutboxFile("server", tmp_path / "outbox.db")
    left.write([event(FAILED) for _ in range(500)], is_held=False)
    left.release()
    own = OutboxFile("server", left.path)
    with at_cloud(RecordsNoFailures()), PrefectMirror(outbox=own, stall_timeout=3600.0) as mirror:
        run_mirrored(mirror, jobs(1, "small"))
        assert mirror.close() == MirrorReport(jobs=1, recorded=1)
    assert len(left.take_over(1_000)) == 500


def _popped(queue: deque[Any]) -> Iterator[Any]:
    for _ in range(len(queue)):
        yield queue.popleft()


@pytest.mark.nightly
def test_a_server_that_demands_a_password_records_all_jobs(tmp_path: Path) -> None:
    """The mirror takes the server's password from Prefect's settings."""
    with prefect_server("tuned", tmp_path, PREFECT_SERVER_API_AUTH_STRING="user:secret") as server:
        with server.environment(PREFECT_API_AUTH_STRING="user:secret"):
            assert apart(run_many_jobs, 40)["complete"]


@pytest.mark.nightly
def test_the_embedded_server_records_all_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded server has written all jobs into its database before it ends with the flow."""
    create_database(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
    assert apart(run_many_jobs, 100)["complete"]
    query = "SELECT dynamic_key, state_name, run_count FROM task_run"
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        known = {name: ends for name, *ends in database.execute(query)}
    failures = {number: failures_of(number) for number in range(100)}
    assert known == {
        f"job-{number}": ["Failed" if failed == 2 else "Completed", 2 if failed else 1]
        for number, failed in failures.items()
    }


def test_a_workspace_of_prefect_cloud_records_all_jobs(prefect_api: str) -> None:
    """Requests to Prefect Cloud have the workspace's path, the key as bearer token, and many events each."""
    with at_cloud() as cloud, PrefectMirror() as mirror:
        run_mirrored(mirror, jobs(50, "cloud"))
    assert mirror.report().recorded == 50
    assert {path for path, _ in cloud.requests} == {"/events", "/task_runs/filter", "/task_runs/count"}
    for _, headers in cloud.requests:
        assert (headers["authorization"], headers["x-proxy"]) == ("Bearer pnu_key", "open")
    assert sum(path == "/events" for path, _ in cloud.requests) <= 5


@pytest.mark.parametrize("status", [403, 404])
def test_a_role_that_may_not_read_a_flow_runs_deployment_can_mirror(prefect_api: str, status: int) -> None:
    """Without the right to read the deployment, task runs are related to the flow run alone."""

    @flow
    def restricted() -> MirrorReport:
        with at_cloud() as cloud, PrefectMirror() as mirror:
            cloud.status = status
            run_mirrored(mirror, jobs(3, "restricted"))
            return mirror.close(5.0)

    assert restricted() == MirrorReport(jobs=3, recorded=3)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_for_the_flow_runs_deployment(prefect_api: str, status: int) -> None:
    """Reading the facts from a busy server raises, so that the mirror repeats it."""

    @flow
    def early() -> None:
        with at_cloud() as cloud, temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
            cloud.status = status
            with pytest.raises(httpx.HTTPStatusError):
                read_flow_run_facts(flow_run_facts())

    early()


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [({}, 1.0), ({"retry-after": "0"}, 1.0), ({"retry-after": "30"}, 30.0), ({"retry-after": "9999"}, 60.0)],
)
def test_a_server_that_asks_to_be_left_alone_is_not_asked_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: dict[str, str], seconds: float
) -> None:
    """Between two attempts is the time that a busy server names, up to a minute, unless the mirror is closed."""
    waits: list[float] = []

    class Closed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(max(0.0, timeout or 0.0))
            return self.is_set()

    def busy() -> NoReturn:
        if waits:
            thread._closed.set()  # noqa: SLF001
        request = httpx.Request("POST", "http://server/api/events")
        raise httpx.HTTPStatusError(
            "busy", request=request, response=httpx.Response(429, headers=answer, request=request)
        )

    thread = SenderThread(UnsentChanges("auto"), OutboxFile("server", tmp_path / "outbox.db"))
    thread._closed = Closed()  # noqa: SLF001
    monkeypatch.setattr(ServerApi, "connected", busy)
    thread._run()  # noqa: SLF001
    first, second = waits[: len(waits) // 2], waits[len(waits) // 2 :]
    assert sum(first) == sum(second) == seconds


@contextmanager
def _unreachable() -> Iterator[tuple[ServerProxy, str]]:
    """Put the session's server behind a closed proxy, and yield the proxy and the server's address behind it."""
    port = int(os.environ["PREFECT_API_URL"].split(":")[2].split("/")[0])
    proxy = ServerProxy(port)
    try:
        yield proxy, f"http://127.0.0.1:{proxy.port}/api"
    finally:
        proxy.close()
