"""A store that cannot be written: jobs go on, nothing recorded is lost, and the problem is said once."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import Settings, StoreSettings
from executor_adapter.exceptions import ConfigurationError, QueueFullError
from executor_adapter.store import JobFilter, StoreUnavailableError, open_store
from executor_adapter.worker.presence import NO_PRESENCE
from tests.contract.conftest import wait_for
from tests.contract.stores import store_jobs

JOBS = 300


def run_through(url: str, outage: Callable[[], contextlib.AbstractContextManager[None]], said: str) -> list[str]:
    """Run jobs before, during and after an outage; what was logged of it.

    Those that run meanwhile end as if nothing were, and all of them are in the store afterwards.
    """
    messages: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("executor_adapter.store").addHandler(listener)
    try:
        with JobExecutor(4, config=Settings(), store=url) as executor:
            executor.run(Job(function=store_jobs.give, args=(0,)))
            assert executor.flush(10)
            with outage():
                jobs = [executor.submit(Job(function=store_jobs.give, args=(n,))) for n in range(JOBS)]
                assert [future.result(30) for future in jobs] == list(range(JOBS))
                wait_for(lambda: any(said in message for message in messages), seconds=30)
                assert not executor.flush(0.2)
                with pytest.raises(StoreUnavailableError):
                    executor.release("no such job")
            executor.run(Job(function=store_jobs.give, args=(0,)))
            assert executor.flush(30)
            store = open_store(url)
            try:
                assert store.counts()[JobStatus.COMPLETED] == JOBS + 2
                live = frozenset({JobStatus.PENDING, JobStatus.RUNNING})
                assert store.find(JobFilter(statuses=live)).total == 0
            finally:
                store.close()
    finally:
        logging.getLogger("executor_adapter.store").removeHandler(listener)
    return messages


def said_once(messages: list[str]) -> None:
    """Once that it cannot be written, and why; once that it can again."""
    assert len([message for message in messages if "cannot be written: " in message]) == 1, messages
    assert len([message for message in messages if "can be written again" in message]) == 1, messages
    assert all("give" not in message for message in messages)


def test_another_writer_that_locks_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor_adapter.store.sql.engines.BUSY_TIMEOUT", 0.2)
    file = tmp_path / "jobs.db"
    said_once(run_through(f"sqlite:///{file}", lambda: locked(file), "database is locked"))


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB. Skips where it cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}: run as root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    @contextlib.contextmanager
    def full() -> Iterator[None]:
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()

    said_once(run_through(f"sqlite:///{small_disk}/jobs.db", full, "full"))


class PrivatePostgreSQL:
    """A PostgreSQL of one's own: a cluster in `directory` on a free port, run as the user `postgres`."""

    def __init__(self, directory: Path) -> None:
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        if not versions:
            if os.environ.get("CI") == "true":
                raise FileNotFoundError("no PostgreSQL is installed")
            pytest.skip("no PostgreSQL is installed: apt-get install postgresql")
        self._bin = versions[-1].parent
        self._cluster = directory / "cluster"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        if os.geteuid() == 0:
            subprocess.run(["chown", "postgres", str(directory)], check=True)
        self._call("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "-D", str(self._cluster))

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._call("pg_ctl", "-w", "-D", str(self._cluster), "-l", str(self._cluster / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-w", "-m", "immediate", "-D", str(self._cluster), "stop")

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _call(self, program: str, *args: str) -> None:
        command = [str(self._bin / program), *args]
        if os.geteuid() == 0:  # as which it refuses to run
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=60)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PrivatePostgreSQL]:
    with TemporaryDirectory() as directory:  # not in pytest's, which the server's user cannot enter
        server = PrivatePostgreSQL(Path(directory))
        server.start()
        yield server
        server.stop()


def test_a_postgresql_that_is_restarted(postgresql: PrivatePostgreSQL) -> None:
    said_once(run_through(postgresql.url, postgresql.stopped, "cannot be written"))


def test_a_lease_that_cannot_be_renewed_ends_its_jobs_in_time(postgresql: PrivatePostgreSQL, tmp_path: Path) -> None:
    """Another machine may take them over, and this one would not know. When the store is back they run again."""
    run_through_a_lease(postgresql.url, postgresql.stopped, tmp_path / "runs")


def test_where_only_leases_tell_who_is_gone_they_do_so_on_one_machine_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executor_adapter.store.host.presence", lambda: NO_PRESENCE)
    monkeypatch.setattr("executor_adapter.store.sql.engines.BUSY_TIMEOUT", 0.2)
    file = tmp_path / "jobs.db"
    run_through_a_lease(f"sqlite:///{file}", lambda: locked(file), tmp_path / "runs")


def run_through_a_lease(url: str, outage: Callable[[], contextlib.AbstractContextManager[None]], file: Path) -> None:
    config = Settings(store=StoreSettings(lease=1.5))
    with JobExecutor(1, config=config, store=url) as executor:
        job = executor.submit(Job(function=store_jobs.count_run, args=(str(file), 600), pool="process")).job
        wait_for(file.exists)
        assert executor.flush(10)
        with outage():
            wait_for(lambda: job.status is JobStatus.CANCELLED)
        wait_for(lambda: file.stat().st_size == 2, seconds=20)
        assert executor.cancel(job.job_id)
        assert executor.flush(10)


def run_without_end(executor: JobExecutor) -> None:
    while True:
        executor.run(Job(function=store_jobs.give, args=(1,)))


def test_no_more_is_kept_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executor_adapter.store.sql.engines.BUSY_TIMEOUT", 0.1)
    monkeypatch.setattr("executor_adapter.persistence.recorder.MAX_PENDING_WRITES", 20)
    file = tmp_path / "jobs.db"
    with JobExecutor(2, config=Settings(), store=f"sqlite:///{file}") as executor, contextlib.ExitStack() as stack:
        executor.run(Job(function=store_jobs.give, args=(0,)))
        assert executor.flush(10)
        connection = stack.enter_context(contextlib.closing(sqlite3.connect(file, isolation_level=None)))
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(QueueFullError, match=r"sqlite:.* cannot be written, and 20 job changes wait for it"):
            run_without_end(executor)
        connection.close()
        assert executor.flush(10)
        executor.run(Job(function=store_jobs.give, args=(0,)))


def test_urls_that_name_no_store_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for url, message in (
        ("mysql://x", "is not a store: give 'memory:'"),
        ("sqlite://", "does not name a file"),
        (f"sqlite:///{tmp_path}/none/jobs.db", "is not a directory: create it"),
        ("postgresql://a:b:c:d/e", "store.url"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            open_store(url)
    with pytest.raises(StoreUnavailableError, match="refused"):
        open_store("postgresql://nobody:secret@127.0.0.1:1/none")


def test_a_missing_driver_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"prefect-executor-adapter\[postgres\]"):
        open_store("postgresql://postgres@127.0.0.1/none")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    from executor_adapter.store.sql.engines import make_engine
    from executor_adapter.store.sql.store import SqlStore

    store = SqlStore(make_engine("postgresql://user:secret@127.0.0.1/none"))
    assert "secret" not in store.url
    store.close()
