"""Outages of a store: jobs continue, nothing is lost, and each outage is logged once."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy.exc import DBAPIError, ProgrammingError

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import Settings, StoreSettings
from executor_adapter.exceptions import ConfigurationError, ExecutorClosedError
from executor_adapter.executor import current_executor
from executor_adapter.job import PoolName
from executor_adapter.store import JobFilter, StoreUnavailableError, open_store
from executor_adapter.store.sql.engines import make_engine, translate_errors
from executor_adapter.store.sql.store import SqlStore
from tests.contract.stores import store_jobs
from tests.contract.stores.databases import postgresql_url
from tests.insides import callers_of_store
from tests.servers import free_port
from tests.waiting import PATIENCE, wait_for

JOBS = 300
UNREACHABLE = "postgresql://postgres@127.0.0.1:1/test"


def run_through(url: str, outage: Callable[[], contextlib.AbstractContextManager[None]], expected: str) -> list[str]:
    """Run jobs before, during and after an outage; return the messages logged.

    Jobs that run meanwhile finish, and all of them are in the store afterwards.
    """
    messages: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("executor_adapter.store").addHandler(listener)
    try:
        with JobExecutor(4, config=Settings(), store=url) as executor:
            executor.run(Job(function=store_jobs.give, args=(0,)))
            assert executor.flush()
            with outage():
                jobs = [executor.submit(Job(function=store_jobs.give, args=(n,))) for n in range(JOBS)]
                assert [future.result(PATIENCE) for future in jobs] == list(range(JOBS))
                wait_for(lambda: any(expected in message for message in messages))
                assert not executor.flush(0.2)
                with pytest.raises(StoreUnavailableError):
                    executor.release("no such job")
            executor.run(Job(function=store_jobs.give, args=(0,)))
            assert executor.flush(PATIENCE)
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


def assert_logged_once(messages: list[str]) -> None:
    """Check that there is one message that the store cannot be written, with the reason, and one that it can again."""
    assert len([message for message in messages if "cannot be written: " in message]) == 1, messages
    assert len([message for message in messages if "can be written again" in message]) == 1, messages
    assert all("give" not in message for message in messages)


@pytest.mark.parametrize("url", [UNREACHABLE, "sqlite:///{tmp_path}/jobs.db"])
def test_an_executor_that_cannot_be_made_leaves_no_descriptor(url: str, tmp_path: Path) -> None:
    """A program that makes an executor again, until its store and its key can be used, runs out of no descriptors."""
    config = Settings(store=StoreSettings(pickle_arguments=True, pickle_key=SecretStr("too-short")))
    numbers = []
    for _ in range(4):
        with pytest.raises((StoreUnavailableError, ConfigurationError)):
            JobExecutor(1, config=config, store=url.format(tmp_path=tmp_path))
        gc.collect()
        numbers.append(len(os.listdir("/proc/self/fd")))
    assert numbers[1:] == numbers[:1] * 3


def test_a_call_after_the_shutdown_leaves_no_descriptor(tmp_path: Path) -> None:
    """An executor that is shut down opens its store for nobody."""
    executor = JobExecutor(1, config=Settings(), store=f"sqlite:///{tmp_path}/jobs.db")
    executor.run(Job(function=store_jobs.give, args=(1,)))
    executor.shutdown()
    for call in (executor.recover, functools.partial(executor.release, "no such job")):
        with pytest.raises(ExecutorClosedError):
            call()
    files = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    assert not [file for file in files if file.startswith(str(tmp_path))]


def test_an_executor_that_cannot_recover_is_not_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store is away when an executor is entered, it is left again and shut down."""

    def fail(*_: Any, **__: Any) -> None:
        raise StoreUnavailableError("it is away")

    async def enter(executor: JobExecutor) -> None:
        async with executor:
            pytest.fail("entered")

    for is_async in (False, True):
        executor = JobExecutor(1, config=Settings(), store=f"sqlite:///{tmp_path}/jobs.db")
        monkeypatch.setattr(executor.store, "register", fail)
        with pytest.raises(StoreUnavailableError, match="it is away"), contextlib.ExitStack() as stack:
            asyncio.run(enter(executor)) if is_async else stack.enter_context(executor)
        assert executor.is_shutting_down
        assert current_executor() is not executor


def test_jobs_survive_a_registration_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that is no outage of the database is said once, and what happened meanwhile is recorded later."""

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such bind")

    executor = JobExecutor(1, config=Settings(), store=f"sqlite:///{tmp_path}/jobs.db")
    with monkeypatch.context() as patched:
        patched.setattr(executor.store, "register", fail)
        executor.run(Job(function=store_jobs.give, args=(1,), job_id="one"))
        wait_for(lambda: "cannot be written" in caplog.text)
    assert executor.flush(PATIENCE)
    record = executor.store.get("one")
    executor.shutdown()
    assert record is not None
    assert record.status is JobStatus.COMPLETED
    assert caplog.text.count("this host cannot be registered: ValueError('no such bind')") == 1


def test_jobs_survive_a_locked_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs finish while another writer locks the SQLite file, and all of them are recorded afterwards."""
    monkeypatch.setattr("executor_adapter.store.sql.engines.BUSY_TIMEOUT", 0.2)
    file = tmp_path / "jobs.db"
    assert_logged_once(run_through(f"sqlite:///{file}", lambda: locked(file), "database is locked"))


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


def test_a_deleted_database_file_is_noticed(tmp_path: Path) -> None:
    """While a SQLite file is gone, jobs finish and a message says so; once it is back, all of them are recorded."""
    file = tmp_path / "jobs.db"
    assert_logged_once(run_through(f"sqlite:///{file}", lambda: moved_away(tmp_path), f"{file} was deleted: "))


@contextlib.contextmanager
def moved_away(directory: Path) -> Iterator[None]:
    names = os.listdir(directory)
    for name in names:
        (directory / name).rename(directory / f"{name}.away")
    try:
        yield
        assert not set(names) & set(os.listdir(directory)), "an empty file was made in its place"
    finally:
        for name in names:
            (directory / f"{name}.away").rename(directory / name)


def test_a_replaced_database_file_is_noticed(tmp_path: Path) -> None:
    """A store whose SQLite file was replaced refuses the next use with a message, and then uses the new file."""
    file, other = tmp_path / "jobs.db", tmp_path / "other.db"
    store = open_store(f"sqlite:///{file}")
    open_store(f"sqlite:///{other}").close()
    other.replace(file)
    with pytest.raises(StoreUnavailableError, match=r"jobs\.db was replaced by another file"):
        store.counts()
    assert sum(store.counts().values()) == 0
    store.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB; skips where it cannot be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}: run as root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_jobs_survive_a_full_disk(small_disk: Path) -> None:
    """Jobs finish while the disk is full, and all of them are recorded afterwards."""

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
        filler.unlink()

    assert_logged_once(run_through(f"sqlite:///{small_disk}/jobs.db", full, "full"))


class PrivatePostgreSQL:
    """Runs a PostgreSQL server with a new cluster in `directory`, on a free port, as the user `postgres`."""

    def __init__(self, directory: Path) -> None:
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        if not versions:
            if os.environ.get("CI") == "true":
                raise FileNotFoundError("no PostgreSQL is installed")
            pytest.skip("no PostgreSQL is installed: apt-get install postgresql")
        self._bin = versions[-1].parent
        self._cluster = directory / "cluster"
        self.port = free_port()
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

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its processes, as a machine that hangs would: connections stay open, and nothing answers."""
        postmaster = (self._cluster / "postmaster.pid").read_text().split()[0]
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        pids = [int(pid) for pid in (postmaster, *children)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def _call(self, program: str, *args: str) -> None:
        command = [str(self._bin / program), *args]
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            command = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", timeout=PATIENCE)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[PrivatePostgreSQL]:
    with TemporaryDirectory() as directory:  # the server's user cannot enter pytest's directory
        server = PrivatePostgreSQL(Path(directory))
        server.start()
        yield server
        server.stop()


def test_jobs_survive_a_restart_of_postgresql(postgresql: PrivatePostgreSQL) -> None:
    """Jobs finish while PostgreSQL is down, and all of them are recorded afterwards."""
    assert_logged_once(run_through(postgresql.url, postgresql.stopped, "cannot be written"))


def test_jobs_stop_before_a_lease_expires_that_cannot_be_renewed(postgresql: PrivatePostgreSQL, tmp_path: Path) -> None:
    """A host that cannot renew its lease stops its jobs in time; they run again once the store is back."""
    run_through_a_lease(postgresql.url, postgresql.stopped, tmp_path / "runs")


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_jobs_stop_before_a_lease_expires_whose_store_hangs(
    postgresql: PrivatePostgreSQL, pool: PoolName, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A host whose store answers nothing at all stops its jobs in time and says so, those in its threads too."""
    run_through_a_lease(postgresql.url, postgresql.frozen, tmp_path / "runs", pool)
    assert " s, so the lease on it ends: 1 jobs are stopped here and run again" in caplog.text


def test_a_shutdown_does_not_wait_for_a_store_that_hangs(
    postgresql: PrivatePostgreSQL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A shutdown gives a call that has begun some time, then says what is not recorded, and holds no caller up."""
    monkeypatch.setattr("executor_adapter.persistence.recorder.SHUTDOWN_TIMEOUT", 0.1)
    with contextlib.closing(open_store(postgresql.url)) as store:
        executor = JobExecutor(1, config=Settings(), store=store)
        executor.run(Job(function=store_jobs.give, args=(0,)))
        assert executor.flush()
        with ThreadPoolExecutor() as callers, postgresql.frozen():
            executor.run(Job(function=store_jobs.give, args=(1,)))
            flush, release = callers.submit(executor.flush), callers.submit(executor.release, "no such job")
            wait_for(lambda: callers_of_store(executor) == 2)
            executor.shutdown()
            assert flush.result(PATIENCE) is False
            with pytest.raises(StoreUnavailableError):
                release.result(PATIENCE)
        wait_for(lambda: "executor-recorder" not in [thread.name for thread in threading.enumerate()])
    assert re.search(r"[12] job changes could not be recorded: postgresql\S* does not answer", caplog.text)


def test_a_shutdown_hardly_waits_where_nothing_is_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that hangs when all is recorded, and is asked only for the end of the lease, is given less time."""
    monkeypatch.setattr("executor_adapter.persistence.recorder.SHUTDOWN_TIMEOUT", 2.0)
    monkeypatch.setattr("executor_adapter.persistence.recorder.IDLE_SHUTDOWN_TIMEOUT", 0.1)
    answers = threading.Event()
    executor = JobExecutor(1, config=Settings(), store=f"sqlite:///{tmp_path}/jobs.db")
    executor.run(Job(function=store_jobs.give, args=(0,)))
    assert executor.flush()
    monkeypatch.setattr(executor.store, "leave", lambda *_: answers.wait(PATIENCE))
    began = time.monotonic()
    try:
        executor.shutdown(timeout=0)
        assert time.monotonic() - began < 2.0
    finally:
        answers.set()


@pytest.mark.parametrize("method", ["hosts", "register", "release"])
def test_a_caller_does_not_wait_for_a_store_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Also where no job is live, or none ever was, a store that answers nothing for a lease is said to callers."""
    answers = threading.Event()
    config = Settings(store=StoreSettings(lease=1.0, recover_every=None))
    executor = JobExecutor(1, config=config, store=f"sqlite:///{tmp_path}/jobs.db")
    monkeypatch.setattr(executor.store, method, lambda *_, **__: answers.wait(PATIENCE))
    try:
        with pytest.raises(StoreUnavailableError):
            executor.release("no such job") if method == "release" else executor.recover()
    finally:
        answers.set()
        executor.shutdown()


def test_a_lock_that_others_keep_counts_as_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs finish while another program locks the table, the log says why nothing is recorded, and nothing is lost."""
    monkeypatch.setattr("executor_adapter.store.sql.engines.BUSY_TIMEOUT", 1)

    @contextlib.contextmanager
    def locked_table(url: str) -> Iterator[None]:
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE executor_adapter_jobs")
            yield

    with postgresql_url() as url:
        assert_logged_once(run_through(url, lambda: locked_table(url), "canceling statement due to lock timeout"))


@pytest.mark.parametrize("table", ["hosts", "jobs"])
def test_a_missing_table_counts_as_an_outage(table: str) -> None:
    """Jobs finish while a table is not there, for a restore or a change of rights, and nothing is lost."""
    name = f"executor_adapter_{table}"

    @contextlib.contextmanager
    def renamed_table(url: str) -> Iterator[None]:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"ALTER TABLE {name} RENAME TO gone")  # type: ignore[arg-type]
            yield
            connection.execute(f"ALTER TABLE gone RENAME TO {name}")  # type: ignore[arg-type]

    with postgresql_url() as url:
        assert_logged_once(run_through(url, lambda: renamed_table(url), f'relation "{name}" does not exist'))


@pytest.mark.parametrize(
    ("sqlstate", "raised"),
    [
        ("42P01", StoreUnavailableError),  # A table is missing.
        ("42501", StoreUnavailableError),  # A right is missing.
        ("3F000", StoreUnavailableError),  # The schema is missing.
        ("3D000", StoreUnavailableError),  # The database is missing.
        ("28000", StoreUnavailableError),  # The role may not connect.
        ("42601", ProgrammingError),  # The syntax is wrong.
        ("42703", ProgrammingError),  # There is no such column.
        ("42804", ProgrammingError),  # The types differ.
        ("42883", ProgrammingError),  # There is no such function.
    ],
)
def test_only_what_a_database_lacks_is_an_outage(sqlstate: str, raised: type[Exception]) -> None:
    """A statement that is wrong is no outage: it would be tried again for ever."""
    error = psycopg.errors.lookup(sqlstate)("refused")
    with pytest.raises(raised), translate_errors():
        raise DBAPIError.instance("SELECT 1", {}, error, psycopg.Error)


def test_a_connection_notices_that_its_network_was_cut(postgresql: PrivatePostgreSQL) -> None:
    """The kernel gives a silent connection up after seconds, unless the URL says otherwise."""
    options = {"connect_timeout=3&tcp_user_timeout=7000": (7000, 5), "": (15_000, 5)}
    for query, expected in options.items():
        engine = make_engine(f"{postgresql.url}?{query}")
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            with socket.socket(fileno=os.dup(driver.fileno())) as copy:
                names = (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE)
                assert tuple(copy.getsockopt(socket.IPPROTO_TCP, name) for name in names) == expected
        engine.dispose()


def test_jobs_stop_before_a_lease_on_a_file_expires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A host on one machine also stops its jobs in time: programs in other containers see nothing but its lease."""
    monkeypatch.setattr("executor_adapter.store.sql.engines.BUSY_TIMEOUT", 0.2)
    file = tmp_path / "jobs.db"
    run_through_a_lease(f"sqlite:///{file}", lambda: locked(file), tmp_path / "runs")
    assert " s, so the lease on it ends: 1 jobs are stopped here and run again" in caplog.text


def test_jobs_stop_before_a_lease_expires_whose_renewal_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of every write that is no outage of the database ends no lease in silence."""

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such bind")

    @contextlib.contextmanager
    def failing() -> Iterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(SqlStore, "write", fail)
            yield

    run_through_a_lease(f"sqlite:///{tmp_path}/jobs.db", failing, tmp_path / "runs")
    assert "the lease cannot be renewed: ValueError('no such bind')" in caplog.text
    assert " s, so the lease on it ends: 1 jobs are stopped here and run again" in caplog.text


def run_through_a_lease(
    url: str,
    outage: Callable[[], contextlib.AbstractContextManager[None]],
    file: Path,
    pool: PoolName = "process",
) -> None:
    config = Settings(store=StoreSettings(lease=1.5, recover_every=None))
    with JobExecutor(1, config=config, store=url) as executor:
        job = executor.submit(Job(function=store_jobs.count_run, args=(str(file), 600), pool=pool)).job
        wait_for(file.exists)
        assert executor.flush()
        with outage():
            wait_for(lambda: job.status is JobStatus.CANCELLED)
        why = "another host runs a job with this id, or may run it since the lease ended"
        assert job.error_message == f"job {job.job_id} was cancelled: {why}"
        wait_for(lambda: file.stat().st_size > 1)
        executor.shutdown(timeout=0)


@pytest.mark.parametrize("call", ["write", "cancel_requests"])
def test_a_job_stops_in_time_that_the_store_has_just_got(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that hangs once it has a new job, with its answer to that or right after it, is known to have it."""
    file = tmp_path / "runs"
    config = Settings(store=StoreSettings(lease=1.5, recover_every=None))
    with JobExecutor(1, config=config, store=f"sqlite:///{tmp_path}/jobs.db") as executor:
        executor.run(Job(function=os.getpid, pool="process"))  # Its worker takes the next job within the lease.
        assert executor.flush()
        goes_on = threading.Event()
        real = getattr(executor.store, call)

        def hang_after(*args: Any, **options: Any) -> Any:
            answer = real(*args, **options)
            goes_on.wait(PATIENCE)
            return answer

        monkeypatch.setattr(executor.store, call, hang_after)
        job = executor.submit(Job(function=store_jobs.count_run, args=(str(file), 600), pool="process")).job
        wait_for(lambda: job.status is JobStatus.CANCELLED)
        goes_on.set()
        wait_for(lambda: file.stat().st_size == 2)
        executor.shutdown(timeout=0)


def test_changes_that_wait_for_a_store_that_hangs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit of pending writes, new jobs are refused although no call of the store has failed."""
    monkeypatch.setattr("executor_adapter.persistence.recorder.MAX_PENDING_WRITES", 20)
    config = Settings(store=StoreSettings(lease=1.5))
    with JobExecutor(2, config=config, store=f"sqlite:///{tmp_path}/jobs.db") as executor:
        goes_on = threading.Event()
        with monkeypatch.context() as patched:
            real = executor.store.write
            patched.setattr(executor.store, "write", lambda *args, **options: goes_on.wait() and real(*args, **options))
            with pytest.raises(StoreUnavailableError, match="20 job changes wait for it"):
                run_without_end(executor)
        goes_on.set()
        executor.shutdown(timeout=0)


def run_without_end(executor: JobExecutor) -> None:
    while True:
        executor.run(Job(function=store_jobs.give, args=(1,)))


def test_new_jobs_are_refused_when_too_many_writes_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the limit of pending writes, submit raises StoreUnavailableError until the store can be written again."""
    monkeypatch.setattr("executor_adapter.store.sql.engines.BUSY_TIMEOUT", 0.1)
    monkeypatch.setattr("executor_adapter.persistence.recorder.MAX_PENDING_WRITES", 20)
    file = tmp_path / "jobs.db"
    with JobExecutor(2, config=Settings(), store=f"sqlite:///{file}") as executor, contextlib.ExitStack() as stack:
        executor.run(Job(function=store_jobs.give, args=(0,)))
        assert executor.flush()
        connection = stack.enter_context(contextlib.closing(sqlite3.connect(file, isolation_level=None)))
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailableError, match=r"sqlite:.* cannot be written, and 20 job changes wait for it"):
            run_without_end(executor)
        connection.close()
        assert executor.flush()
        executor.run(Job(function=store_jobs.give, args=(0,)))


def test_urls_without_a_store_are_refused(tmp_path: Path) -> None:
    """A URL that does not name a store is refused, and the message says what to give instead."""
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


def test_a_missing_driver_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without psycopg, a PostgreSQL URL is refused and the message names the extra to install."""
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"prefect-executor-adapter\[postgres\]"):
        open_store("postgresql://postgres@127.0.0.1/none")


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    """A store's URL does not show the password."""
    from executor_adapter.store.sql.engines import make_engine
    from executor_adapter.store.sql.store import SqlStore

    store = SqlStore(make_engine("postgresql://user:secret@127.0.0.1/none"))
    assert "secret" not in store.url
    store.close()
