"""Hosts that were killed while their workers live on: no other host runs the jobs before the workers are gone."""

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

from executor_adapter.job.ids import uuid7
from executor_adapter.job.status import JobStatus
from executor_adapter.store import Host, JobRecord, JobStore
from executor_adapter.store.host import close_host, new_host, this_machine
from executor_adapter.store.sql import leases
from executor_adapter.store.sql.engines import make_engine
from tests.contract.stores import killed_host
from tests.contract.stores.conftest import MakeStored, wait_for_end
from tests.waiting import PATIENCE, wait_for

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def run_log(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def start(url: str, run_log: Path) -> Iterator[Start]:
    """Starts a host and waits until its job runs; all of its processes are killed in the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start_host(function: str) -> subprocess.Popen[bytes]:
        host = killed_host.start_host(url, run_log, function)
        started.append(host)
        sleepers = 1 + (function == "outlive_guardian")
        wait_for(lambda: killed_host.runs_of(run_log) and len(killed_host.sleepers_of(run_log)) == sleepers)
        return host

    yield start_host
    for host in started:
        host.kill()
        host.wait()
    for pid in (*killed_host.runs_of(run_log), *killed_host.sleepers_of(run_log)):
        if pid != os.getpid():
            send(pid, signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def assert_taken_over_after(release: Callable[[], None], store: JobStore, make: MakeStored, run_log: Path) -> None:
    """Check that no host gets the job before `release` is called, and that one which waits does afterwards."""
    rival = new_host()
    store.register(rival, lease=60)
    assert store.claim(rival, queue="") == []
    assert any(host.is_dying for host in store.hosts())
    executor = make()
    with ThreadPoolExecutor(1) as thread:
        recovering = thread.submit(executor.recover)
        with pytest.raises(TimeoutError):
            recovering.result(0.3)
        assert store.claim(rival, queue="") == []
        release()
        (job,) = recovering.result(PATIENCE)
    close_host(rival)
    assert wait_for_end(store, job.job_id).status is JobStatus.COMPLETED
    assert len(killed_host.runs_of(run_log)) == 2
    assert not (run_log / "overlaps").exists()
    assert not any(host.is_dying for host in store.hosts())


def kill_host_with_its_guardian_stopped(start: Start, doing: str, run_log: Path) -> tuple[int, int]:
    """Kill the host; return the process ids of its worker, which lives, and of its guardian, which is stopped."""
    host = start(doing)
    (worker,) = killed_host.runs_of(run_log)
    guardian = parent_of(worker)
    send(guardian, signal.SIGSTOP)
    host.kill()
    host.wait()
    return worker, guardian


def test_jobs_of_a_dead_host_wait_until_its_guardian_has_killed_the_workers(
    start: Start, store: JobStore, make_stored: MakeStored, run_log: Path
) -> None:
    """A dead host's job runs elsewhere only after its guardian has killed the worker."""
    _, guardian = kill_host_with_its_guardian_stopped(start, "work", run_log)
    try:
        assert_taken_over_after(lambda: send(guardian, signal.SIGCONT), store, make_stored, run_log)
    finally:
        send(guardian, signal.SIGCONT)


def test_jobs_of_a_dead_host_wait_for_a_worker_that_outlives_its_guardian(
    start: Start, store: JobStore, make_stored: MakeStored, run_log: Path
) -> None:
    """A worker that outlives host and guardian delays the recovery; other processes that they forked do not."""
    worker, guardian = kill_host_with_its_guardian_stopped(start, "outlive_guardian", run_log)
    send(guardian, signal.SIGKILL)
    assert_taken_over_after(lambda: send(worker, signal.SIGKILL), store, make_stored, run_log)
    for sleeper in killed_host.sleepers_of(run_log):
        os.kill(sleeper, 0)


def test_jobs_of_a_dead_host_wait_for_a_stopped_spawned_worker(
    start: Start, store: JobStore, make_stored: MakeStored, run_log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spawned worker that has not noticed its host's death delays the recovery."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__START_METHOD", "spawn")
    host = start("work")
    (worker,) = killed_host.runs_of(run_log)
    assert parent_of(worker) == host.pid
    send(worker, signal.SIGSTOP)
    host.kill()
    host.wait()
    assert_taken_over_after(lambda: send(worker, signal.SIGCONT), store, make_stored, run_log)


EXEC = """
import os, sys
from executor_adapter.worker.presence import own_presence
from executor_adapter.store import open_store
from executor_adapter.store.host import new_host
store = open_store(sys.argv[1])
if len(sys.argv) == 2:
    host = new_host()
    store.register(host, lease=600)
    held = os.dup(*own_presence().fds)  # as a worker would that still lives
    os.set_inheritable(held, True)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:], str(held)])
print(any(host.is_dying for host in store.hosts()), end=" ")
os.close(int(sys.argv[2]))
print(any(host.is_dying for host in store.hosts()))
"""


def test_a_program_replaced_by_exec_waits_for_its_former_workers(url: str, store: JobStore) -> None:
    """After exec, a process keeps its id and start time, but its former host counts as dying and not as alive."""
    done = subprocess.run(
        [sys.executable, "-c", EXEC, url], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout == "True False\n"


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # In SQLite the transaction ends with the process.
def test_a_host_cut_off_within_a_transaction_blocks_no_claim(url: str, store: JobStore) -> None:
    """Claims skip the locked row of a host that was cut off, and PostgreSQL ends its idle transaction."""
    cut_off, rival = new_host(), new_host()
    for host in (cut_off, rival):
        store.register(host, lease=60)
    engine = make_engine(url)
    with engine.begin() as connection:
        assert leases.renew(connection, cut_off.host_id, 60)
        close_host(cut_off)
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(store.claim, rival, queue="").result(PATIENCE) == []
        assert connection.execute(text("SHOW idle_in_transaction_session_timeout")).scalar() == "30s"
    engine.dispose()
    close_host(rival)


HOLD = """
import os, socket, sys
from executor_adapter.worker.presence import own_presence
if sys.argv[1] == "worker":
    name = own_presence().name
else:
    os.setuid(65534)
    name = "0123456789abcdef"
    for bound in (name, "\\n\\n"):  # The kernel lists names as they are, line ends included.
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        held.bind(f"\\0executor-adapter/{bound}")
        os.dup(held.detach())
print(name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold() -> Iterator[Callable[[str], str]]:
    """Lets a process hold a presence, as a worker of ours or as another user who has bound its name; returns it."""
    started: list[subprocess.Popen[str]] = []

    def start_holder(kind: str) -> str:
        command = [sys.executable, "-c", HOLD, kind]
        started.append(holder := subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert holder.stdout is not None
        name = holder.stdout.readline().strip()
        assert name
        return name

    yield start_holder
    for holder in started:
        holder.communicate()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize(
    ("holder", "lease", "taken"),
    [("another user", -1.0, True), ("another user", 600.0, False), ("worker", -1.0, False)],
    ids=["another user, lease over", "another user, lease valid", "worker, lease over"],
)
def test_a_name_that_another_user_binds_does_not_block_a_take_over(
    store: JobStore, hold: Callable[[str], str], holder: str, lease: float, taken: bool
) -> None:
    """Where another user holds the name of a dead host, its lease decides; where a worker of ours does, it waits."""
    dead = Host(host_id=uuid7(), machine=this_machine(), pid=2**22, process_started=1, presence=hold(holder))
    store.register(dead, lease=60)
    store.write(dead.host_id, [JobRecord(job_id="job", host=dead.host_id)], lease=lease)
    rival = new_host()
    store.register(rival, lease=60)
    try:
        assert [record.job_id for record in store.claim(rival, queue="")] == (["job"] if taken else [])
    finally:
        close_host(rival)
