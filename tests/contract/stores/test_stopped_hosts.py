"""Tests hosts that are stopped by a signal (Ctrl-Z) while they run jobs that others may take over."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from executor_adapter.job import JobStatus
from executor_adapter.job.ids import uuid7
from executor_adapter.store import Host, open_store
from tests.contract.process_pool.harness import alive
from tests.contract.stores.conftest import leases_here, record_in
from tests.contract.stores.databases import url_of
from tests.waiting import PATIENCE, wait_for

LEASE = 2.0


class StoppedHost:
    """A program that runs one job on the store, and that can be stopped and continued."""

    def __init__(self, url: str, runs: Path, lease: float = LEASE) -> None:
        runs.parent.mkdir()
        self.url = url
        self.runs = runs
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.stores.stopped_host", url, str(lease), str(runs)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self) -> list[int]:
        """Return the pids of the workers that began the job."""
        return [int(line) for line in self.runs.read_text().split()] if self.runs.exists() else []

    def last_seen(self, pid: int) -> float:
        """Return the monotonic time at which the job last ran in this worker."""
        return float(Path(f"{self.runs}.{pid}").read_text() or 0)

    def run_and_stop(self) -> int:
        """Wait until the job runs and the store says so, then stop the program. Return the worker's pid.

        It has just renewed its lease then, and so is not stopped with a lock on the store.
        """
        with contextlib.closing(open_store(self.url)) as store:
            wait_for(lambda: self.pids() and (job := store.get(self.runs.stem)) and job.status is JobStatus.RUNNING)
        leases = leases_here(self.url)
        wait_for(lambda: leases_here(self.url) != leases)
        self.stop()
        return self.pids()[-1]

    def stop(self) -> None:
        """Stop the program."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def continue_(self) -> None:
        """Continue the program."""
        os.kill(self._process.pid, signal.SIGCONT)

    def until_logged(self, text: str) -> None:
        """Wait until a line of its log has this text; `output` does not return what was read."""
        assert self._process.stderr is not None
        assert any(text in line for line in self._process.stderr)

    def go(self) -> None:
        """Let the job end."""
        self.runs.with_name("go").touch()

    def output(self) -> tuple[str, str]:
        """Wait for the program to end; return its stdout and stderr."""
        return self._process.communicate(timeout=PATIENCE)

    def close(self) -> None:
        """Kill the program."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def host_on(url: str, runs: Path, lease: float = LEASE) -> Iterator[StoppedHost]:
    host = StoppedHost(url, runs, lease)
    try:
        yield host
    finally:
        host.close()


def test_jobs_of_a_stopped_host_end_with_its_lease(tmp_path: Path) -> None:
    """The workers of a stopped host end with its lease. Once it continues it runs the jobs again, unless others do."""
    with (
        url_of("postgresql", tmp_path) as url,
        url_of("postgresql", tmp_path) as other_url,
        host_on(url, tmp_path / "kept" / "job") as kept,
        host_on(other_url, tmp_path / "taken" / "job") as taken,
        contextlib.closing(open_store(other_url)) as store,
    ):
        pid, taken_pid = kept.run_and_stop(), taken.run_and_stop()
        wait_for(lambda: not alive(pid) and not alive(taken_pid))

        rival = Host(host_id=uuid7(), machine="elsewhere", pid=1, process_started=1)
        store.register(rival, lease=60)
        (host_id,) = leases_here(other_url)
        store.leave(host_id)
        assert [record.job_id for record in store.claim(rival, queue="")] == ["job"]

        for host in (kept, taken):
            host.continue_()
        wait_for(lambda: len(kept.pids()) == 2)
        kept.go()
        result, log = kept.output()
        assert result == "went 1\n"
        assert "the guardian has ended" in log
        result, log = taken.output()
        assert result.startswith("cancelled")
        assert "another host has taken over 1 jobs" in log
        assert taken.pids() == [taken_pid]
        assert record_in(store, "job").host == rival.host_id


def test_a_program_that_is_stopped_while_it_asks_its_store_keeps_its_jobs(tmp_path: Path) -> None:
    """The silence of its store meanwhile was its own: the job runs again under the future that its caller has."""
    with (
        url_of("postgresql", tmp_path) as url,
        host_on(url, tmp_path / "run" / "job") as host,
        psycopg.connect(url) as connection,
    ):
        wait_for(lambda: host.pids() and leases_here(url))
        connection.execute("LOCK TABLE executor_adapter_hosts")
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database"
        wait_for(lambda: connection.execute(f"{waiting} WHERE datname = current_database())").fetchone() == (1,))
        host.stop()
        connection.rollback()
        (pid,) = host.pids()
        wait_for(lambda: not alive(pid))  # Just after the host would have stopped its jobs because of the silence.
        host.continue_()
        wait_for(lambda: len(host.pids()) == 2)
        host.go()
        assert host.output()[0] == "went 1\n"


def test_a_program_that_is_stopped_in_an_outage_which_ends_meanwhile_keeps_its_jobs(tmp_path: Path) -> None:
    """What it last heard of its store is old: it asks again before it gives its jobs up."""
    with (
        url_of("postgresql", tmp_path) as url,
        host_on(url, tmp_path / "run" / "job") as host,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        wait_for(lambda: host.pids() and leases_here(url))
        connection.execute("ALTER TABLE executor_adapter_hosts RENAME TO away")
        host.until_logged("cannot be written")
        host.stop()
        connection.execute("ALTER TABLE away RENAME TO executor_adapter_hosts")
        (pid,) = host.pids()
        wait_for(lambda: not alive(pid))
        host.continue_()
        wait_for(lambda: len(host.pids()) == 2)
        host.go()
        assert host.output()[0] == "went 1\n"


def test_jobs_of_a_stopped_host_run_nowhere_else_before_its_workers_are_dead(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program in another container, which sees the lease alone, takes jobs over after the stopped host's workers."""
    with host_on(url, tmp_path / "run" / "job", lease=6.0) as host, contextlib.closing(open_store(url)) as store:
        pid = host.run_and_stop()
        monkeypatch.setattr("executor_adapter.store.host.this_machine", lambda: "another container")
        rival = Host(host_id=uuid7(), machine="another container", pid=1, process_started=1)
        store.register(rival, lease=600)
        wait_for(lambda: store.claim(rival, queue=""))
        assert not alive(pid)
