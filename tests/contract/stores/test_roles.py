"""PostgreSQL with the least rights: a team's programs work, change no table, and see nothing of another team."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ProgrammingError

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import Settings
from executor_adapter.store import open_store
from executor_adapter.store.sql.engines import make_engine
from tests.contract.stores import store_jobs
from tests.contract.stores.databases import url_of
from tests.servers import ROOT
from tests.waiting import PATIENCE

SCRIPT = ROOT / "deployments" / "postgresql" / "roles.sql"


@pytest.fixture
def teams(tmp_path: Path) -> Iterator[dict[str, URL]]:
    """The database's URL for each team that the script has made."""
    with url_of("postgresql", tmp_path) as url:
        database = make_url(url)
        names = [f"team_{uuid4().hex[:8]}" for _ in range(2)]
        for name in names:
            command = ["psql", "--quiet", "--set", f"team={name}", "--file", str(SCRIPT), url]
            subprocess.run(command, check=True, timeout=PATIENCE)
        yield dict.fromkeys(names, database)
        engine = make_engine(url)
        with engine.execution_options(writes=True).begin() as connection:
            for name in names:
                connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
                connection.execute(text(f"DROP OWNED BY {name}_owner, {name}_jobs"))
                connection.execute(text(f"DROP ROLE {name}_owner, {name}_jobs"))
        engine.dispose()


def as_role(database: URL, role: str) -> str:
    return database.set(username=role).render_as_string(hide_password=False)


def test_two_teams_share_a_database_with_the_least_rights(teams: dict[str, URL]) -> None:
    """The owner's first opening makes the tables; jobs run without further rights, and are their own team's alone."""
    for name, database in teams.items():
        open_store(as_role(database, f"{name}_owner")).close()
        with JobExecutor(1, config=Settings(), store=as_role(database, f"{name}_jobs")) as executor:
            executor.submit(Job(function=store_jobs.give, args=(name,), job_id=f"job of {name}")).result(PATIENCE)
            executor.flush(PATIENCE)
    mine, other = teams
    store = open_store(as_role(teams[mine], f"{mine}_jobs"))
    assert {record.job_id: record.status for record in store.find().records} == {f"job of {mine}": JobStatus.COMPLETED}
    store.close()
    engine = make_engine(as_role(teams[mine], f"{mine}_jobs"))
    for forbidden in (
        "DROP TABLE executor_adapter_jobs",
        "ALTER TABLE executor_adapter_jobs ADD COLUMN mine integer",
        "CREATE TABLE mine (id integer)",
        f"SELECT * FROM {other}.executor_adapter_jobs",
    ):
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"), engine.begin() as connection:
            connection.execute(text(forbidden))
    engine.dispose()
