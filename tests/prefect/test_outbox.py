"""The outbox's file: shared by processes, bounded, for its owner alone; it loses no state to a kill or a full disk."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import signal
import sqlite3
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings
from pytest_mock import MockerFixture

from executor_adapter.prefect.mirror import outbox as outbox_module
from executor_adapter.prefect.mirror.events import StateEvent
from executor_adapter.prefect.mirror.outbox import BUSY_TIMEOUT, MAX_TRANSACTION_EVENTS, Outbox, OutboxFile
from executor_adapter.prefect.mirror.server import server_name
from executor_adapter.testing import FakeClock
from tests.prefect.sample_events import COMPLETED, PENDING, event
from tests.waiting import PATIENCE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "outbox.db"


def states(count: int, name: str = "job") -> list[StateEvent]:
    made = [event(COMPLETED) for _ in range(count)]
    for number, each in enumerate(made):
        each.job_id = f"{name}-{number}"
    return made


def outbox_of(file: OutboxFile) -> Outbox:
    outbox = Outbox()
    outbox.file = file
    return outbox


def facts(event: StateEvent) -> tuple[object, ...]:
    return event.task_run_id, event.name, event.at, event.is_final, event.body, event.job_id, event.flow_run_id


def test_an_event_comes_back_as_it_was(path: Path) -> None:
    """All facts of an event are in its row, which only the file's owner can read; none is left once it is recorded."""
    made = [event(PENDING, flow_run_id="run"), event(COMPLETED)]
    made[1].job_id = "caf\udce9\t"
    file = OutboxFile("server", path)
    file.write(made, is_held=False)
    read = file.take(10)
    assert [facts(each) for each in read] == [facts(each) for each in made]
    assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
    assert file.take(10) == []
    file.delete(each.row for each in read if each.row is not None)
    file.release()
    assert file.count() == 0
    assert list(path.parent.glob("*.lock")) == []


def test_many_events_are_written_and_deleted_by_one_statement_each(path: Path, mocker: MockerFixture) -> None:
    """At each statement Python lets another thread go on. New events and those that are in the file keep their rows."""
    said: list[str] = []

    class Noted(sqlite3.Connection):
        def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
            said.append(statement.split()[0])
            return super().execute(statement, *values)

    mocker.patch("sqlite3.connect", functools.partial(sqlite3.connect, factory=Noted))
    file, old, new = OutboxFile("server", path), states(2, "old"), states(500, "new")
    file.write(old, is_held=True)
    mixed = [new[0], old[1], *new[1:], old[0]]
    said.clear()
    assert file.write(mixed, is_held=False) == len(mixed)
    assert said.count("INSERT") == 1
    read = {each.row: facts(each) for each in file.take(1_000)}
    assert read == {each.row: facts(each) for each in mixed}
    said.clear()
    assert file.delete(filter(None, read)) == len(mixed)
    assert (said.count("DELETE"), file.count()) == (1, 0)


def test_rows_belong_to_one_mirror_until_it_is_closed(path: Path) -> None:
    """Nobody takes over the rows of a mirror that is alive, nor those for another server; each row goes to one."""
    first, second = OutboxFile("server", path), OutboxFile("server", path)
    first.write(states(3), is_held=False)
    first.write(states(2), is_held=True)
    assert (second.take_over(10), second.count()) == ([], 5)
    first.release()
    assert OutboxFile("another", path).take_over(10) == []
    assert len(second.take_over(3)) == 3
    third = OutboxFile("server", path)
    left = third.take_over(10)
    assert (len(left), {each.is_inherited for each in left}) == (2, {True})
    second.release()
    assert len(third.take_over(10)) == 3


def write_states(path: Path, name: str, count: int) -> None:
    """Write states one by one, as many processes do at once; leave the file as a killed process does."""
    file = OutboxFile("server", path)
    for each in states(count, name):
        file.write([each], is_held=False)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_each_embedded_database_has_rows_of_its_own(path: Path, tmp_path: Path) -> None:
    """States that wait for one project's embedded server are not sent to that of another, which would drop them."""
    for database in ("a", "b"):
        url = f"sqlite+aiosqlite:///{tmp_path}/{database}.db"
        with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: url}, restore_defaults={PREFECT_API_URL}):
            file = OutboxFile(server_name(), path)
        assert file.count() == 0
        file.write(states(1), is_held=False)


def test_processes_share_a_new_file(path: Path) -> None:
    """Processes that begin at one moment all write to one new file, and lose nothing when they are killed."""
    context, names = multiprocessing.get_context("fork"), ("a", "b", "c")
    own = OutboxFile("server", path)
    processes = [context.Process(target=write_states, args=(path, name, 20)) for name in names]
    for process in processes:
        process.start()
    own.write(states(20, "own"), is_held=True)
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == -signal.SIGKILL
    assert sorted(each.job_id for each in OutboxFile("server", path).take_over(1_000)) == sorted(
        f"{name}-{number}" for name in names for number in range(20)
    )
    assert len(list(path.parent.glob("*.lock"))) == 2, "the locks of the dead are left"


def test_no_process_is_forked_while_the_file_is_open(path: Path, mocker: MockerFixture) -> None:
    """A fork waits for a transaction, so no child inherits a connection, or SQLite's memory of locks."""
    file, is_open, go_on = OutboxFile("server", path), threading.Event(), threading.Event()
    file.write(states(1), is_held=False)
    seen: list[bool] = []

    class Slow(sqlite3.Connection):
        def close(self) -> None:
            is_open.set()
            go_on.wait(PATIENCE)
            super().close()
            seen.append(False)

    connect = sqlite3.connect
    mocker.patch("sqlite3.connect", lambda *args, **options: connect(*args, factory=Slow, **options))
    counting = threading.Thread(target=file.count)
    counting.start()
    assert is_open.wait(PATIENCE)
    threading.Timer(0.05, go_on.set).start()
    if (child := os.fork()) == 0:
        os._exit(len(seen))
    counting.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_on_a_full_disk_the_kept_and_the_missing_jobs_are_returned(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each part that the disk still takes is kept, the log says once that it is full, and none stays in memory."""
    small, large = states(MAX_TRANSACTION_EVENTS), states(2 * MAX_TRANSACTION_EVENTS, "large")
    last = states(MAX_TRANSACTION_EVENTS, "last")
    for each in large:
        each.body += b" " * 10_000
    outbox = outbox_of(OutboxFile("server", path, max_bytes=8_000_000))
    kept, missing = outbox.close([*small, *large, *last])
    assert kept == tuple(each.job_id for each in (*small, *last))
    assert missing == tuple(each.job_id for each in large)
    assert (caplog.text.count("cannot use"), "memory" in caplog.text) == (1, False)
    assert len(OutboxFile("server", path).take_over(10_000)) == len(kept)


def test_a_file_that_is_full_of_events_takes_a_death(path: Path) -> None:
    """Deaths have room of their own, and each server its own deaths."""
    full, bodies = OutboxFile("server", path, max_bytes=100_000), ["{}", json.dumps({"run_counts": {"run": 1}})]
    with pytest.raises(sqlite3.OperationalError, match="full"):
        full.write(states(MAX_TRANSACTION_EVENTS), is_held=False)
    for body in bodies:
        full.keep_death(body)
    first, second = full.deaths()
    assert list(full.deaths().values()) == bodies
    full.delete_death(first)
    assert list(OutboxFile("server", path).deaths()) == [second]
    assert OutboxFile("other", path).deaths() == {}


def test_a_file_that_others_hold_for_long_does_not_hold_up_each_part(path: Path, mocker: MockerFixture) -> None:
    """One wait for the locks of others is as long as a mirror's close waits for all parts."""
    clock, outbox = FakeClock(), outbox_of(OutboxFile("server", path))
    mocker.patch.object(outbox_module, "time", mocker.Mock(monotonic=clock, sleep=clock.advance))
    path.parent.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("BEGIN IMMEDIATE")
        kept, missing = outbox.close(states(5 * MAX_TRANSACTION_EVENTS))
    assert (kept, len(missing)) == ((), 5 * MAX_TRANSACTION_EVENTS)
    assert clock() < 3 * BUSY_TIMEOUT


def test_a_file_that_others_hold_does_not_hold_up_a_mirror_that_runs(
    path: Path, mocker: MockerFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """While it runs, a mirror waits a moment and comes again; that the file is busy is said once, when it lasts."""
    clock, outbox = FakeClock(), Outbox()
    outbox.open(OutboxFile("server", path))
    outbox.store(states(1))
    mocker.patch.object(outbox_module, "time", mocker.Mock(monotonic=clock, sleep=clock.advance))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        rounds, began = 0, clock()
        while not caplog.text:
            assert not outbox.store(states(3))
            rounds += 1
            clock.advance(1)
    assert BUSY_TIMEOUT / 2 < rounds < clock() - began < BUSY_TIMEOUT * 2
    assert outbox.store(states(3))
    assert caplog.text.count("cannot use") == 1


def test_a_fork_does_not_wait_for_those_who_hold_the_file(path: Path, mocker: MockerFixture) -> None:
    """A mirror that is closed while others hold the file lets its program fork between two tries."""
    outbox = outbox_of(OutboxFile("server", path))
    outbox.store(states(1))
    tried, pause = threading.Event(), threading.Event()
    sleep = mocker.Mock(side_effect=lambda _: (tried.set(), pause.wait(0.001)))
    mocker.patch.object(outbox_module, "time", mocker.Mock(monotonic=time.monotonic, sleep=sleep))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        closing = threading.Thread(target=outbox.close, args=(states(3),))
        closing.start()
        assert tried.wait(PATIENCE)
        if (child := os.fork()) == 0:
            os._exit(0)
        assert closing.is_alive()
        other.execute("COMMIT")
    closing.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("what", ["a folder that cannot be made", "a file that is no database"])
def test_a_file_that_cannot_be_used_is_said_once(path: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """States stay in memory then, and are written once the file can be used."""
    if what == "a folder that cannot be made":
        obstacle = path.parent
    else:
        path.parent.mkdir()
        obstacle = path
    obstacle.write_bytes(b"something else" * 1_000)
    outbox = outbox_of(OutboxFile("server", path))
    assert [outbox.store(states(3)) for _ in range(3)] == [False] * 3
    assert caplog.text.count("cannot use") == 1
    obstacle.unlink()
    assert outbox.store(states(3))
    assert outbox.stored == 3


def test_a_file_that_could_not_be_read_once_is_not_asked_for_ever(path: Path, mocker: MockerFixture) -> None:
    """Once it can be read again, and holds nothing of others, the mirror has nothing to wait for."""
    outbox = outbox_of(file := OutboxFile("server", path))
    outbox.is_heir = True
    refused = mocker.patch.object(file, "take_over", side_effect=OSError("the disk is away"))
    assert (outbox.take_over(10), outbox.is_heir) == ([], True)
    mocker.stop(refused)
    assert (outbox.take_over(10), outbox.is_heir) == ([], False)


def test_a_file_that_was_removed_is_reported(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Final states that are missing when their mirror reads them again are counted and logged."""
    outbox = outbox_of(OutboxFile("server", path))
    outbox.store([event(PENDING), *states(2)])
    for each in path.parent.glob("outbox.db*"):
        each.unlink()
    assert (outbox.take(10), outbox.lost, outbox.stored) == ([], 2, 0)
    assert "has lost 2 final states" in caplog.text


def test_old_rows_are_deleted_unless_their_mirror_lives(path: Path) -> None:
    """What is too old goes, for all servers, with the locks of the dead; what a living mirror has stays."""
    living, dead = OutboxFile("server", path), OutboxFile("another", path)
    living.write([event(COMPLETED, 100.0)], is_held=False)
    dead.write([event(COMPLETED, 100.0), event(COMPLETED, 300.0)], is_held=False)
    dead.release()
    assert OutboxFile("server", path).delete_old(200.0) == 1
    assert (living.count(), dead.count()) == (1, 1)


def test_a_new_file_to_which_another_process_gives_its_log_is_waited_for(path: Path, mocker: MockerFixture) -> None:
    """SQLite refuses that at once, now and then, to one of two processes, whatever its timeout: it is tried again."""
    refused: list[str] = []

    class Refusing(sqlite3.Connection):
        def execute(self, statement: str, *args: Any) -> sqlite3.Cursor:
            if "journal_mode" in statement and len(refused) < 3:
                refused.append(statement)
                error = sqlite3.OperationalError("database is locked")
                error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise error
            return super().execute(statement, *args)

    connect = sqlite3.connect
    mocker.patch("sqlite3.connect", lambda *args, **options: connect(*args, factory=Refusing, **options))
    assert OutboxFile("server", path).write(states(1), is_held=False) == 1
    assert len(refused) == 3
