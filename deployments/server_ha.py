"""Runs a Prefect server as several processes on PostgreSQL and Redis, without containers.

    python deployments/server_ha.py [--api 2] [--port 4200] [--database prefect_ha] [--redis redis://127.0.0.1:6379/5]

Each API server has a port of its own, from `--port` on. The background services (scheduler, automations, recorder) run
in a process of their own. All share the database, which is created if it does not exist, and the messages in Redis.
Ctrl-C ends all of it; so does the end of any of these processes. A second one on the same machine needs a database, a
Redis database and ports of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from urllib.parse import unquote, urlsplit

import asyncpg

from executor_adapter.config import redacted

HOST = "127.0.0.1"
START_TIMEOUT = 120.0
"""Seconds for the servers to answer; the first start creates the tables before."""
STOP_TIMEOUT = 15.0
"""Seconds for a process to end before it is killed."""
SETTINGS = {
    "PREFECT_MESSAGING_BROKER": "prefect_redis.messaging",
    "PREFECT_MESSAGING_CACHE": "prefect_redis.messaging",
    "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
    # Migrations run once, before the processes start.
    "PREFECT_API_DATABASE_MIGRATE_ON_START": "false",
    # Write many events in one transaction. The default of one per event falls behind.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "500",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # Flow runs, with their task runs, logs and artifacts, are kept for 90 days. By default they are kept for ever.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": "7776000",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

Process = subprocess.Popen[bytes]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a Prefect server as several processes on PostgreSQL and Redis.")
    parser.add_argument("--api", type=int, default=2, help="API servers (default: 2)")
    parser.add_argument("--port", type=int, default=4200, help="port of the first API server (default: 4200)")
    parser.add_argument(
        "--postgres", default="postgresql://postgres@127.0.0.1:5432", help="the server, without database"
    )
    parser.add_argument("--database", default="prefect_ha", help="name of the database (default: prefect_ha)")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/5", help="Redis with the number of its database")
    return parser.parse_args(arguments)


def environment(options: argparse.Namespace) -> dict[str, str]:
    """Return the environment of all processes; variables that the user has set win over the defaults."""
    postgres, redis = options.postgres.replace("://", "+asyncpg://", 1), urlsplit(options.redis)
    own = {
        "PREFECT_API_DATABASE_CONNECTION_URL": f"{postgres}/{options.database}",
        "PREFECT_REDIS_MESSAGING_HOST": redis.hostname or HOST,
        "PREFECT_REDIS_MESSAGING_PORT": str(redis.port or 6379),
        "PREFECT_REDIS_MESSAGING_DB": redis.path.strip("/") or "0",
        "PREFECT_REDIS_MESSAGING_USERNAME": unquote(redis.username or "default"),
        "PREFECT_REDIS_MESSAGING_PASSWORD": unquote(redis.password or ""),
        "PREFECT_REDIS_MESSAGING_SSL": str(redis.scheme == "rediss").lower(),
        "PREFECT_SERVER_DOCKET_URL": options.redis,
        "PREFECT_SERVER_DOCKET_NAME": options.database,
        "PREFECT_UI_API_URL": f"http://{HOST}:{options.port}/api",
    }
    return SETTINGS | {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | own


async def create_database(postgres: str, name: str) -> None:
    """Create the database if it does not exist."""
    connection = await asyncpg.connect(f"{postgres}/postgres")
    try:
        with suppress(asyncpg.DuplicateDatabaseError):
            await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()


def prefect(*words: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *words]


@contextmanager
def running(commands: list[list[str]], env: dict[str, str]) -> Iterator[list[Process]]:
    """Run the commands; afterwards end all of them at once, and kill what does not end in time."""
    processes: list[Process] = []
    try:
        # In sessions of their own, so that a Ctrl-C of the terminal reaches this process alone.
        processes.extend(subprocess.Popen(command, env=env, start_new_session=True) for command in commands)
        yield processes
    finally:
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def check_ports(ports: range) -> None:
    """Refuse ports that another program listens on, which would be taken for one of the servers.

    Raises:
        SystemExit: there are none, or one is in use.
    """
    if not ports:
        raise SystemExit("--api: give at least 1 server")
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise SystemExit(f"port {port} cannot be used: {error.strerror}: give another --port") from None


def is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/api/health", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def ended(processes: list[Process]) -> Process | None:
    return next((process for process in processes if process.poll() is not None), None)


def wait_until_healthy(processes: list[Process], ports: list[int]) -> None:
    """Wait until every API server answers.

    Raises:
        SystemExit: a process ended, or a server does not answer in time.
    """
    deadline = time.monotonic() + START_TIMEOUT
    waiting = list(ports)
    while waiting := [port for port in waiting if not is_healthy(port)]:
        if (process := ended(processes)) is not None:
            raise SystemExit(f"{process.args!r} ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"no answer on port {waiting[0]} after {START_TIMEOUT:.0f} s")
        time.sleep(0.2)


def interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: list[str]) -> None:
    """Run the server until it is interrupted.

    Raises:
        SystemExit: a port is in use, PostgreSQL cannot be reached, or one of the processes ended.
    """
    options = parse(arguments)
    check_ports(range(options.port, options.port + options.api))
    env = environment(options)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        asyncio.run(create_database(options.postgres, options.database))
    except (OSError, asyncpg.PostgresError) as error:
        raise SystemExit(
            redacted(f"PostgreSQL at {options.postgres} cannot be used: {error}: start it, or give --postgres")
        ) from None
    migrated = subprocess.run(prefect("server", "database", "upgrade", "--yes"), env=env, check=False)
    if migrated.returncode:
        raise SystemExit(f"the tables of {options.database} cannot be created: see above")
    with suppress(KeyboardInterrupt):
        run(list(range(options.port, options.port + options.api)), env)


def run(ports: list[int], env: dict[str, str]) -> None:
    """Run an API server on each port, and the services, until the user interrupts.

    Raises:
        SystemExit: one of the processes ended, or does not answer in time.
    """
    start = prefect("server", "start", "--no-services", "--host", HOST, "--port")
    first, *others = ([*start, str(port)] for port in ports)
    with running([first], env) as processes:
        wait_until_healthy(processes, ports[:1])
        # The first one has registered Prefect's blocks; two that do so at once fail.
        registered = env | {"PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
        with running([*others, prefect("server", "services", "start")], registered) as more:
            wait_until_healthy(more, ports[1:])
            watch([*processes, *more], ports)


def watch(processes: list[Process], ports: list[int]) -> None:
    """Print the addresses, and wait.

    Raises:
        SystemExit: one of the processes ended.
    """
    for port in ports:
        print(f"PREFECT_API_URL=http://{HOST}:{port}/api", flush=True)
    print("Ctrl-C ends all processes", flush=True)
    while (process := ended(processes)) is None:
        time.sleep(0.5)
    raise SystemExit(f"{process.args!r} ended with exit code {process.returncode}")


if __name__ == "__main__":
    main(sys.argv[1:])
