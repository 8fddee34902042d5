"""A host whose process was killed while workers of its live on: nobody runs its jobs before they are gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from executor_adapter.job.status import JobStatus
from executor_adapter.store import JobStore
from executor_adapter.store.host import close_host, new_host
from executor_adapter.store.sql import SqlStore, leases
from executor_adapter.store.sql.engines import make_engine
from tests.contract.conftest import wait_for
from tests.contract.stores import survivors
from tests.contract.stores.conftest import MakeStored, ended

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def start(url: str, ledger: Path) -> Iterator[Start]:
    """Starts the host and waits for its job to run; nothing of it is left in the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start_host(function: str) -> subprocess.Popen[bytes]:
        host = survivors.start_host(url, ledger, function)
        started.append(host)
        sleepers = 1 + (function == "outlive_guardian")
        wait_for(lambda: survivors.runs_of(ledger) and len(survivors.sleepers_of(ledger)) == sleepers, seconds=40)
        return host

    yield start_host
    for host in started:
        host.kill()
        host.wait()
    for pid in (*survivors.runs_of(ledger), *survivors.sleepers_of(ledger)):
        if pid != os.getpid():
            send(pid, signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def assert_taken_over_after(release: Callable[[], None], store: JobStore, make: MakeStored, ledger: Path) -> None:
    """Nobody gets the job before `release` is called, and somebody who waits for it does afterwards."""
    rival = new_host()
    store.register(rival, lease=60)
    assert store.claim(rival, queue="") == []
    assert store.any_host_is_dying()
    executor = make()
    with ThreadPoolExecutor(1) as thread:
        recovering = thread.submit(executor.recover)
        with pytest.raises(TimeoutError):
            recovering.result(0.3)
        assert store.claim(rival, queue="") == []
        release()
        (job,) = recovering.result(30)
    close_host(rival)
    assert ended(store, job.job_id).status is JobStatus.COMPLETED
    assert len(survivors.runs_of(ledger)) == 2
    assert not (ledger / "overlaps").exists()
    assert not store.any_host_is_dying()


def host_killed_with_its_guardian_stopped(start: Start, doing: str, ledger: Path) -> tuple[int, int]:
    """The process ids of its worker, which lives, and of the guardian."""
    host = start(doing)
    (worker,) = survivors.runs_of(ledger)
    guardian = parent_of(worker)
    send(guardian, signal.SIGSTOP)
    host.kill()
    host.wait()
    return worker, guardian


def test_the_host_is_dead_and_its_guardian_has_not_killed_yet(
    start: Start, store: JobStore, make_stored: MakeStored, ledger: Path
) -> None:
    _, guardian = host_killed_with_its_guardian_stopped(start, "work", ledger)
    try:
        assert_taken_over_after(lambda: send(guardian, signal.SIGCONT), store, make_stored, ledger)
    finally:
        send(guardian, signal.SIGCONT)


def test_host_and_guardian_are_dead_and_a_worker_is_not(
    start: Start, store: JobStore, make_stored: MakeStored, ledger: Path
) -> None:
    """What the program or its job forked, and lives on, keeps nobody waiting."""
    worker, guardian = host_killed_with_its_guardian_stopped(start, "outlive_guardian", ledger)
    send(guardian, signal.SIGKILL)
    assert_taken_over_after(lambda: send(worker, signal.SIGKILL), store, make_stored, ledger)
    for sleeper in survivors.sleepers_of(ledger):
        os.kill(sleeper, 0)


def test_a_spawned_worker_has_not_seen_yet_that_its_host_is_dead(
    start: Start, store: JobStore, make_stored: MakeStored, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__START_METHOD", "spawn")
    host = start("work")
    (worker,) = survivors.runs_of(ledger)
    assert parent_of(worker) == host.pid
    send(worker, signal.SIGSTOP)
    host.kill()
    host.wait()
    assert_taken_over_after(lambda: send(worker, signal.SIGCONT), store, make_stored, ledger)


EXEC = """
import os, sys
from executor_adapter.worker.presence import presence
from executor_adapter.store import open_store
from executor_adapter.store.host import new_host
store = open_store(sys.argv[1])
if len(sys.argv) == 2:
    host = new_host()
    store.register(host, lease=600)
    held = os.dup(*presence().fds)  # as a worker would that is not dead yet
    os.set_inheritable(held, True)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], str(held)])
print(store.any_host_is_dying(), end=" ")
os.close(int(sys.argv[2]))
print(store.any_host_is_dying())
"""


def test_a_program_that_becomes_another_waits_for_workers_of_its_former_self(url: str, store: JobStore) -> None:
    """With exec its process id and its start stay the same, and what it held does not."""
    done = subprocess.run([sys.executable, "-c", EXEC, url], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True False\n"


def test_a_host_that_was_cut_off_within_a_transaction_keeps_nobody_waiting(url: str, store: JobStore) -> None:
    """Its lease is looked at by others who do not wait for its row; and PostgreSQL does not wait for it for ever."""
    if not isinstance(store, SqlStore) or not store.shared:
        pytest.skip("in SQLite the transaction ends with the process")
    cut_off, rival = new_host(), new_host()
    for host in (cut_off, rival):
        store.register(host, lease=60)
    engine = make_engine(url)
    with engine.begin() as connection:
        assert leases.renew(connection, cut_off.host_id, 60)
        close_host(cut_off)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(store.claim, rival, queue="").result(10) == []
        assert connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar() == "30s"
    engine.dispose()
    close_host(rival)
