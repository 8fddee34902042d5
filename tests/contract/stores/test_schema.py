"""The schema: migrations create it, also where many programs open a store at once."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from pytest_mock import MockerFixture
from sqlalchemy import text

import executor_adapter.store.sql as sql
from executor_adapter import JobExecutor
from executor_adapter.config import Settings, StoreSettings
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.store import JobRecord, open_store
from executor_adapter.store.sql.engines import make_engine
from executor_adapter.store.sql.schema import REVISION, VERSIONS, metadata
from tests.contract.stores.conftest import on_both
from tests.waiting import PATIENCE

RELEASED = Path(__file__).parent / "released"


@on_both
def test_the_migrations_create_the_schema(url: str) -> None:
    """The migrations create exactly the tables that the package defines."""
    open_store(url).close()
    engine = make_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSIONS})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_the_files_of_a_new_store_are_their_owner_s_alone(tmp_path: Path) -> None:
    """A new SQLite store and its log files can be read by nobody else; the mode of an existing one is left as it is."""
    old_mask = os.umask(0o022)
    try:
        url = f"sqlite:///{tmp_path / 'jobs.db'}"
        store = open_store(url)
        store.enqueue(JobRecord(job_id="job"))
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
        assert modes == {"jobs.db": 0o600, "jobs.db-wal": 0o600, "jobs.db-shm": 0o600}
        store.close()
        (tmp_path / "jobs.db").chmod(0o640)
        open_store(url).close()
        assert (tmp_path / "jobs.db").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old_mask)


def test_the_newest_migration_is_the_required_one() -> None:
    """REVISION names the newest migration."""
    scripts = ScriptDirectory(str(Path(sql.__file__).parent / "migrations"))
    assert scripts.get_current_head() == REVISION


def test_tables_change_with_a_migration_alone(tmp_path: Path) -> None:
    """A new store has the tables and indexes of the one that is kept of the newest migration."""
    open_store(f"sqlite:///{tmp_path / 'new.db'}").close()
    with closing(sqlite3.connect(tmp_path / "new.db")) as new, closing(sqlite3.connect(":memory:")) as kept:
        kept.executescript((RELEASED / f"{REVISION}.sql").read_text())
        # Versions of SQLAlchemy spell a default with brackets or without.
        query = "SELECT name, replace(sql, 'DEFAULT (0)', 'DEFAULT 0') FROM sqlite_master"
        schemas = [set(each.execute(query)) for each in (new, kept)]
    assert schemas[0] == schemas[1]


@on_both
def test_many_programs_can_open_a_new_store_at_once(url: str) -> None:
    """Programs that open a new store at the same time create its schema once."""
    code = f"from executor_adapter.store import open_store; print(open_store({url!r}).find().total)"
    opening = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for program in opening:
        output, errors = program.communicate(timeout=PATIENCE)
        assert (output, program.returncode) == (b"0\n", 0), errors


def test_opening_waits_for_a_program_that_changes_the_schema(tmp_path: Path, mocker: MockerFixture) -> None:
    """A store that another program creates or upgrades is opened once that has ended, also after half a minute."""
    path, clock = tmp_path / "jobs.db", iter(range(1000))
    upgrading = sqlite3.connect(path, isolation_level=None)
    upgrading.execute("PRAGMA journal_mode = WAL")
    upgrading.execute("BEGIN IMMEDIATE")
    waited = mocker.patch("executor_adapter.store.sql.engines.time")
    waited.monotonic.side_effect = clock.__next__
    waited.sleep.side_effect = lambda _: upgrading.close() if waited.sleep.call_count == 30 else None
    open_store(f"sqlite:///{path}").close()
    assert waited.sleep.call_count == 30


@on_both
def test_a_store_of_a_newer_version_is_refused(url: str) -> None:
    """A database of another version is refused, and the message says which one to use."""
    open_store(url).close()
    engine = make_engine(url)
    with engine.execution_options(writes=True).begin() as connection:
        connection.execute(text(f"UPDATE {VERSIONS} SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(ConfigurationError, match=r"9999.*use the version of this package that made it"):
        open_store(url)


KEY = "0123456789abcdef" * 2
"""The key that has signed the pickled jobs there."""


def test_a_store_of_each_schema_is_kept() -> None:
    """There is a store of each migration, as the program of its time has written it; see the test below."""
    scripts = ScriptDirectory(str(Path(sql.__file__).parent / "migrations"))
    assert {file.stem for file in RELEASED.iterdir()} == {found.revision for found in scripts.walk_revisions()}


@pytest.mark.parametrize("file", sorted(RELEASED.iterdir()), ids=lambda file: file.stem)
def test_a_store_of_an_earlier_version_is_taken_over(file: Path, tmp_path: Path) -> None:
    """Ended jobs of an earlier version are shown, and its unfinished ones run, a pickled one too."""
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as database:
        database.executescript(file.read_text())
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    config = Settings(store=StoreSettings(pickle_arguments=True, pickle_key=SecretStr(KEY), functions=["*"]))
    executor = JobExecutor(2, config=config, store=url)
    recovered = [job.job_id for job in executor.recover()]
    assert recovered == ["pending", "pickled", "running"]
    assert [job.job_id for job in executor.quarantined()] == ["quarantined"]
    executor.shutdown()
    store = open_store(url)
    found = {record.job_id: record for record in store.find().records}
    assert {job_id: str(record.status) for job_id, record in found.items()} == {
        **dict.fromkeys(("completed", *recovered), "completed"),
        **dict.fromkeys(("failed", "quarantined"), "failed"),
    }
    assert [attempt.error_code for attempt in found["failed"].attempts] == ["EXECUTION_ERROR", "EXECUTION_ERROR"]
    assert store.tools().control("radar").paused_by == "ann@example"
    store.close()
