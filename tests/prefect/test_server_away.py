"""A mirror whose server is away: it refuses, answers nonsense, or cannot be reached. No final state is lost."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_CLOUD_API_URL,
    temporary_settings,
)

from executor_adapter.prefect import MirrorReport, PrefectMirror
from executor_adapter.prefect.crashes.records import Records
from executor_adapter.prefect.mirror.events import StateEvent
from executor_adapter.prefect.mirror.outbox import Outbox, OutboxFile
from executor_adapter.prefect.mirror.server import ServerApi, server_name
from executor_adapter.prefect.mirror.timeline import JobHistory, UnsentChanges
from tests.prefect.conftest import Api
from tests.prefect.fake_cloud import FakeCloud, at_cloud
from tests.prefect.fake_server import FakeServer
from tests.prefect.sample_events import jobs_in, outbox_of
from tests.prefect.server_proxy import ServerProxy, answering
from tests.prefect.test_mirror import jobs, run_mirrored
from tests.servers import ROOT, free_port
from tests.waiting import wait_for


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "the server accepts no events: HTTP 400"),
        (422, "the server accepts no events: HTTP 422"),
        (401, "it refuses the credentials (HTTP 401): check PREFECT_API_KEY"),
        (403, "the credentials do not permit this (HTTP 403): check PREFECT_API_KEY"),
        (404, "there is no Prefect API at this address (HTTP 404): check PREFECT_API_URL"),
        (200, "its answer is not that of a Prefect server"),
    ],
)
def test_a_server_that_takes_nothing_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, status: int, message: str
) -> None:
    """All states are kept, and one warning says what is wrong, what to do, and no password."""
    port = free_port()
    url = f"http://user:secret@127.0.0.1:{port}/api"
    with answering(status, port), temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(outbox=OutboxFile(url, tmp_path / "outbox.db"))
        run_mirrored(mirror, jobs(20, "away"))
        wait_for(lambda: message in caplog.text)
        report = mirror.close(timeout=0.1)
    assert (len(report.kept), report.missing, report.recorded) == (20, (), 0)
    said = [record.getMessage() for record in caplog.records if "cannot send job states" in record.getMessage()]
    assert len(said) == 1
    assert "secret" not in said[0]


def test_records_of_something_else_are_not_those_of_a_server() -> None:
    """JSON that is not a Prefect server's counts as a server that cannot be used, also where a sweep reads it."""
    port = free_port()
    settings: dict[Any, Any] = {
        PREFECT_API_URL: f"http://127.0.0.1:{port}/api",
        PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False,  # Such a token would be read first.
    }
    with (
        answering(200, port, b'{"status": "ok"}'),
        temporary_settings(settings),
        ServerApi.connected() as api,
        pytest.raises(httpx.DecodingError, match="its answer is not that of a Prefect server"),
    ):
        Records(api).find_flow_runs({})


def count_objects(*kinds: type) -> int:
    gc.collect()
    return sum(issubclass(type(each), kinds) for each in gc.get_objects())


@contextmanager
def cloud_behind_proxy() -> Iterator[tuple[FakeCloud, ServerProxy]]:
    """Point Prefect's settings at a fake cloud behind a proxy that refuses connections until it is opened."""
    with at_cloud() as cloud:
        proxy = ServerProxy(cloud.server_address[1])
        ports = str(cloud.server_address[1]), str(proxy.port)
        addresses: dict[Any, Any] = {
            setting: str(setting.value()).replace(*ports) for setting in (PREFECT_API_URL, PREFECT_CLOUD_API_URL)
        }
        with temporary_settings(addresses):
            try:
                yield cloud, proxy
            finally:
                proxy.close()


def test_states_wait_on_disk_while_the_server_is_away(tmp_path: Path) -> None:
    """While the server is away all states are on disk, few in memory; later it gets each once, and no row is left."""
    count = 3_000
    before = count_objects(JobHistory, StateEvent)
    with cloud_behind_proxy() as (cloud, proxy):
        mirror = PrefectMirror(outbox=OutboxFile("cloud", tmp_path / "outbox.db"))
        run_mirrored(mirror, jobs(count, "disk"))
        wait_for(lambda: len(jobs_in(tmp_path / "outbox.db")) >= count)
        assert count_objects(JobHistory, StateEvent) - before < count / 2
        assert OutboxFile("cloud", tmp_path / "outbox.db").take_over(count) == []
        assert mirror.report() == MirrorReport(jobs=count, recorded=0, omitted=mirror.report().omitted)
        proxy.open()
        assert mirror.close() == MirrorReport(jobs=count, recorded=count, omitted=mirror.report().omitted)
    assert sorted(names.count("Completed") for names in cloud.events.states.values()) == [1] * count
    assert jobs_in(tmp_path / "outbox.db") == []


def test_states_go_to_the_disk_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs that finish while others are written wait for the next time: a burst would be written one by one."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.STORE_INTERVAL", 0.01)
    order: list[str] = []
    store, back_up = Outbox.store, Outbox.back_up

    def note(outbox: Outbox, events: list[StateEvent]) -> bool:
        order.append("store")
        if len(order) < 40:
            run_mirrored(mirror, jobs(1, f"meanwhile-{len(order)}"))
        return store(outbox, events)

    monkeypatch.setattr(Outbox, "store", note)
    monkeypatch.setattr(Outbox, "back_up", lambda *given: order.append("time") or back_up(*given))
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}):
        mirror = PrefectMirror(outbox=OutboxFile("away", tmp_path / "outbox.db"))
        run_mirrored(mirror, jobs(1, "first"))
        wait_for(lambda: len(order) >= 40)
        mirror.close(timeout=0.1)
    assert order[:40] == ["time", "store"] * 20


def test_intermediate_states_wait_on_disk_too(tmp_path: Path) -> None:
    """With history="full" a server that was away gets all states of all jobs."""
    with cloud_behind_proxy() as (cloud, proxy):
        mirror = PrefectMirror(history="full", outbox=OutboxFile("cloud", tmp_path / "outbox.db"))
        run_mirrored(mirror, jobs(300, "all"))
        wait_for(lambda: len(jobs_in(tmp_path / "outbox.db")) >= 300)
        proxy.open()
        assert mirror.close() == MirrorReport(jobs=300, recorded=300)
    assert {tuple(names) for names in cloud.events.states.values()} == {("Pending", "Running", "Completed")}


@pytest.mark.nightly
def test_a_killed_programs_states_are_recorded_by_the_next(api: Api, prefect_api: str, tmp_path: Path) -> None:
    """A program that is killed while its server is away has left all its states; the next one sends each once."""
    proxy, outbox, count = ServerProxy(int(prefect_api.split(":")[2].split("/")[0])), outbox_of(tmp_path), 30
    url = f"http://127.0.0.1:{proxy.port}/api"
    env = os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": url}
    command = [sys.executable, "-m", "tests.prefect.mirrored_jobs", str(count)]
    with proxy, temporary_settings({PREFECT_API_URL: url}):
        proxy.close()
        with subprocess.Popen(command, cwd=ROOT, env=env) as process:
            try:
                wait_for(lambda: len(jobs_in(outbox)) == count)
                assert OutboxFile(url, outbox).take_over(count) == []
            finally:
                process.kill()
        proxy.open()
        with PrefectMirror(outbox=OutboxFile(url, outbox)) as later:
            wait_for(lambda: later.drain() and not jobs_in(outbox))
    for number in (0, count - 1):
        (found,) = api.named(f"dict-killed-{number}")
        assert api.state_names(found["id"]).count("Completed") == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_states_alone(tmp_path: Path) -> None:
    """A child that closes its parent's mirror does not wait, releases none of its states, and holds no lock of them."""
    url, path = f"http://127.0.0.1:{free_port()}/api", tmp_path / "outbox.db"
    with temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(outbox=OutboxFile(url, path))
        run_mirrored(mirror, jobs(20, "forked"))
        wait_for(lambda: len(jobs_in(path)) == 20)
        if (child := os.fork()) == 0:
            mirror.close()
            os._exit(sum(os.path.realpath(each).endswith(".lock") for each in Path("/proc/self/fd").iterdir()))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert OutboxFile(url, path).take_over(20) == []
        assert len(mirror.close(timeout=0.1).kept) == 20


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    "name", ["mirror.runs._lock", "engine.run._lock", "child.payload._packing", "cancellation.watcher.flow_run_watcher"]
)
def test_a_forked_child_waits_for_no_lock_of_its_parents_threads(name: str) -> None:
    """Such a thread is not in the child, and would hold the lock there for ever."""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(f"executor_adapter.prefect.{module}"), attribute)
    lock = getattr(found, "changed", found)
    with ThreadPoolExecutor(1) as other:
        other.submit(lock.acquire).result()
        if (child := os.fork()) == 0:
            os._exit(not lock.acquire(blocking=False))
        other.submit(lock.release).result()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class StandingServer(FakeServer):
    """Accepts all events, and records none."""

    def record(self, limit: int | None = None) -> None:
        pass


def test_a_program_that_is_killed_beside_a_slow_server_leaves_its_states(tmp_path: Path) -> None:
    """All final states that are not recorded are on disk, those in flight too: the server may be killed as well."""
    count, outbox = 400, outbox_of(tmp_path)
    with at_cloud(StandingServer()) as cloud:
        given = {each.name: str(each.value()) for each in (PREFECT_API_URL, PREFECT_CLOUD_API_URL)}
        command = [sys.executable, "-m", "tests.prefect.mirrored_jobs", str(count)]
        env = os.environ | given | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_KEY": "pnu_key"}
        with subprocess.Popen(command, cwd=ROOT, env=env) as process:
            try:
                wait_for(lambda: len(jobs_in(outbox)) == count)
            finally:
                process.kill()
        assert sum(cloud.events.requests) > 100
        cloud.events = FakeServer()
        with PrefectMirror(outbox=OutboxFile(server_name(), outbox)) as later:
            wait_for(lambda: later.drain() and not jobs_in(outbox))
    assert [names.count("Completed") for names in cloud.events.states.values()] == [1] * count


def test_memory_is_bounded_while_a_request_gets_no_answer(tmp_path: Path) -> None:
    """While a server keeps a request waiting, all states are on disk, and what is not in that request there alone."""
    before = count_objects(JobHistory, StateEvent)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with temporary_settings({PREFECT_API_URL: url}):
            mirror = PrefectMirror(outbox=OutboxFile(url, tmp_path / "outbox.db"))
            run_mirrored(mirror, jobs(3_000, "unheard"))
            wait_for(lambda: len(jobs_in(tmp_path / "outbox.db")) == 3_000)
            wait_for(lambda: count_objects(JobHistory, StateEvent) - before < 1_000)
            assert len(mirror.close(timeout=0.1).kept) == 3_000


def test_states_that_neither_server_nor_disk_takes_are_dropped_with_a_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a limit the oldest states are dropped: the log and the report say how many."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.MAX_IN_MEMORY", 300)
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(outbox=OutboxFile(url, tmp_path / "outbox.db", max_bytes=8_192))
        run_mirrored(mirror, jobs(1_000, "dropped"))
        wait_for(lambda: mirror.report().dropped)
        report = mirror.close(timeout=0.1)
    assert 300 <= 1_000 - report.dropped <= 700
    assert report.dropped + len(report.missing) + len(report.kept) == 1_000
    assert not report.complete
    assert "cannot use" in caplog.text
    assert f"dropped {report.dropped} final states" in caplog.text
    assert f"{report.dropped} dropped" in str(report)


@pytest.mark.parametrize("method", ["write", "count"])
def test_a_file_that_fails_in_an_unknown_way_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """No error ends the writing of states, which a kill would cost else; it is said once."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.STORE_INTERVAL", 0.01)
    url = f"http://127.0.0.1:{free_port()}/api"
    tries: list[bool] = []
    real = getattr(OutboxFile, method)

    def fail_twice(file: OutboxFile, *args: Any, **kwargs: Any) -> Any:
        tries.append(True)
        if len(tries) <= 2:
            raise MemoryError("for a moment")
        return real(file, *args, **kwargs)

    monkeypatch.setattr(OutboxFile, method, fail_twice)
    with temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(outbox=OutboxFile(url, tmp_path / "outbox.db"))
        run_mirrored(mirror, jobs(10, "awkward"))
        wait_for(lambda: len(jobs_in(tmp_path / "outbox.db")) == 10)
        assert len(mirror.close(timeout=0.1).kept) == 10
    assert caplog.text.count("for a moment") == 1


def test_an_error_while_states_are_taken_for_the_file_is_said_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread that writes states to the file lives on."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.STORE_INTERVAL", 0.01)
    real = UnsentChanges.take_finished
    errors = iter([RuntimeError("for a moment")])

    def fail_once(unsent: UnsentChanges, *args: Any) -> Any:
        for error in errors:
            raise error
        return real(unsent, *args)

    monkeypatch.setattr(UnsentChanges, "take_finished", fail_once)
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(outbox=OutboxFile(url, tmp_path / "outbox.db"))
        run_mirrored(mirror, jobs(10, "taken"))
        wait_for(lambda: len(jobs_in(tmp_path / "outbox.db")) == 10)
        mirror.close(timeout=0.1)
    assert caplog.text.count("RuntimeError: for a moment") == 1


def test_a_server_that_is_far_behind_gets_all_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in memory for a slow server is bounded: the rest waits on disk, and none is lost or sent twice."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.STORE_INTERVAL", 0.01)
    stored: list[int] = []
    store = Outbox.store
    monkeypatch.setattr(Outbox, "store", lambda self, events: stored.append(len(events)) or store(self, events))
    with at_cloud() as cloud, PrefectMirror(outbox=OutboxFile("cloud", tmp_path / "outbox.db")) as mirror:
        run_mirrored(mirror, jobs(3_000, "behind"))
    assert (mirror.report().recorded, sum(stored) > 0) == (3_000, True)
    assert sorted(names.count("Completed") for names in cloud.events.states.values()) == [1] * 3_000
    assert jobs_in(tmp_path / "outbox.db") == []


def test_a_wait_for_the_server_says_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the server is told every few seconds what it has recorded, and how long the wait lasts."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.mirror.NOTICE_INTERVAL", 0.3)
    monkeypatch.setattr(logging.getLogger("prefect"), "propagate", True)
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(outbox=OutboxFile(url, tmp_path / "outbox.db"), stall_timeout=1.5)
        run_mirrored(mirror, jobs(20, "told"))
        mirror.close()
    told = [record.getMessage() for record in caplog.records if "waiting for" in record.getMessage()]
    assert 2 <= len(told) <= 6
    over, progress = "all jobs are over; ", "0 of 20 recorded (given up after 1.5 s without progress)"
    assert set(told) <= {
        f"{over}waiting for the Prefect server{away}: {progress}" for away in ("", ", which does not answer")
    }
