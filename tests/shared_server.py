"""One Prefect server for all tests of a clone that do not break, restart or configure one.

    with shared_server() as url:  # of the API, as in PREFECT_API_URL

The first that needs it starts it, and it ends with the last process that uses it, however that ends: the kernel
releases its lock. Flows, pools and tags of a test have names of its own, since other tests use the same server at the
same time. No automation fires there: each state of each test would be compared with the triggers of all.

Its database is on PostgreSQL. On SQLite, a request that the server cancels while it writes may keep the only right to
write for minutes: Prefect's driver closes the connection of a cancelled statement when Python collects its garbage.
Servers of a test's own have SQLite, as a new user's.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from tests.servers import (
    DATABASE_VARIABLE,
    ROOT,
    RUN_VARIABLE,
    WITHOUT_SCHEDULES,
    new_user_env,
    postgresql_database,
    prefect_server,
)
from tests.waiting import wait_for

FOLDER = ROOT / ".pytest_cache" / "prefect" / "shared"
USERS = "users"
"""Each process that uses the server has a shared lock of this file; the keeper waits for an exclusive one."""
KEEPER = "keeper"
"""Holds the server's URL while the process that keeps it holds a lock of this file."""
STARTING = "starting"
"""Locked by a process that looks whether there is a server, and starts one if there is none."""
LOG = "keeper.log"


@contextmanager
def shared_server() -> Iterator[str]:
    """Yield the URL of the server's API; it answers until the caller leaves."""
    with shared(FOLDER, "tests.shared_server") as url:
        yield f"{url}/api"


@contextmanager
def shared(folder: Path, keeper: str) -> Iterator[str]:
    """Yield the URL of a server that all callers with the same folder share; the module `keeper` starts it."""
    folder.mkdir(parents=True, exist_ok=True)
    log_file = folder / LOG
    with (folder / USERS).open("a") as users:
        with (folder / STARTING).open("a") as starting:
            fcntl.flock(starting, fcntl.LOCK_EX)
            fcntl.flock(users, fcntl.LOCK_SH)  # Waits for a server to end that nobody uses any more.
            if not _is_kept(folder):
                command = [sys.executable, "-m", keeper, str(folder)]
                env = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}  # It is all runs'.
                with log_file.open("wb") as log:
                    subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=log, check=True)
            url = wait_for(lambda: _url(folder), what=f"a server for all tests ({log_file})")
        yield url


def _is_kept(folder: Path) -> bool:
    """Return whether a process keeps the server, or starts it."""
    with (folder / KEEPER).open("a") as file:
        return not _try_lock(file)


def _url(folder: Path) -> str:
    """Return the server's URL once it answers."""
    assert _is_kept(folder), (folder / LOG).read_text(errors="replace")
    return (folder / KEEPER).read_text()


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def keep(folder: Path, serving: Callable[[], AbstractContextManager[str]]) -> None:
    """Serve, in a process of its own, until nobody uses it; return as soon as no second one can start.

    `serving` yields the URL of its server while that runs.
    """
    with (folder / USERS).open("a") as users, (folder / KEEPER).open("w") as keeper:
        fcntl.flock(keeper, fcntl.LOCK_EX)  # Users come in once it is over, and find no keeper.
        if os.fork():
            return  # The lock is the child's as well.
        os.setsid()
        with serving() as url:
            keeper.write(url)
            keeper.flush()
            fcntl.flock(users, fcntl.LOCK_EX)


@contextmanager
def server_of_tests() -> Iterator[str]:
    """Run a Prefect server whose database is on PostgreSQL, and yield its URL."""
    name = f"prefect_of_tests_{hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]}"
    with tempfile.TemporaryDirectory(prefix="prefect-of-tests-") as folder, postgresql_database(name) as database:
        home = Path(folder)
        more = {DATABASE_VARIABLE: database, "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false"}
        more["PREFECT_API_BLOCKS_REGISTER_ON_START"] = "true"  # Of two who register a type at once, Prefect fails one.
        with prefect_server(home, new_user_env(home, **WITHOUT_SCHEDULES, **more)) as server:
            yield server.url


if __name__ == "__main__":
    keep(Path(sys.argv[1]), server_of_tests)
