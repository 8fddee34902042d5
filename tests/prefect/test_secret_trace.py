"""A secret is traced through every output of a run that uses it: it is in none.

By day unit/test_credentials.py and pipeline/test_rest_credentials.py look at each place that could tell it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from tests.api_server import Answer, Headers, as_json, recording_headers
from tests.servers import ROOT
from tests.waiting import PATIENCE

SECRET = "s3same-0pen-Sesame"
PASSWORD = "h0rse/battery+staple"
ENCODED = "YWRhOmgwcnNlL2JhdHRlcnkrc3RhcGxl"
"""Base64 of the name and the password, as basic authentication sends them."""

PROGRAM = """
import asyncio
from prefect import flow
from executor_adapter import Job
from executor_adapter.config import load_config
from executor_adapter.prefect import job_task, run_jobs
from executor_adapter.scheduler import CollectionScheduler
from executor_adapter.pipeline.flows import JobsFailedError, collection_flow
from tests.prefect import secret_job

@flow
def failing():
    credential = load_config().tools["orders"].credential
    for pool in ("process", "thread"):
        job_task(secret_job.fail, pool=pool, persist_result=False).submit(credential).wait()
    run_jobs([Job(function=secret_job.fail, args=(credential,), pool="process")])

async def schedule():
    scheduler = CollectionScheduler()
    await scheduler.start()
    await scheduler.add_manual_job("fails", secret_job.fail, credential=load_config().tools["orders"].credential)
    await scheduler.add_manual_job("secret", secret_job.use, credential=load_config().tools["orders"].credential)
    while any(not job.status.is_terminal for job in await scheduler.get_all_jobs()):
        await asyncio.sleep(0.05)
    print([str(job.status) for job in await scheduler.get_all_jobs()])
    await scheduler.stop()

try:
    collection_flow()
except JobsFailedError as error:
    print("failed:", error)
failing()
asyncio.run(schedule())
"""


def answer(path: str, headers: Headers) -> Answer:
    """Answer as a server that repeats what it got, in a body or in data that make no sense."""
    got = headers["authorization"]
    if path.startswith("/fine"):
        return as_json([])
    if path.startswith("/refused"):
        return 401, {}, got.encode()
    return as_json({"told": PASSWORD if ENCODED in got else got})


@contextmanager
def command_lines() -> Iterator[set[bytes]]:
    """Collect the arguments of all processes of the machine while the block runs."""
    found: set[bytes] = set()
    over = threading.Event()

    def collect() -> None:
        while not over.wait(0.05):
            for process in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    found.add(process.read_bytes())

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def files_with(text: str, *folders: Path) -> list[Path]:
    """Return the files that hold the text, databases and their logs included."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if text.encode() in file.read_bytes()]


@pytest.fixture(scope="module")
def prefect_api(server_of_file: str) -> str:
    """A server whose database is in this file's PREFECT_HOME, where it is searched."""
    return server_of_file


@pytest.mark.nightly
def test_a_secret_is_in_no_output(prefect_api: str, tmp_path: Path) -> None:
    """It is in no log, state, artifact, event, outbox, stored job, pickle, partition, output or argument of a process.

    An API repeats it in its answers. One secret comes from the environment, the other from a file.
    """
    data, home, secrets = tmp_path / "data", Path(os.environ["PREFECT_HOME"]), tmp_path / "secrets"
    data.mkdir()
    secrets.mkdir()
    (secrets / "password").write_text(f"{PASSWORD}\n")
    resources = {name: {"path": f"/{name}"} for name in ("fine", "refused", "odd")}
    with recording_headers(answer) as (url, seen), command_lines() as arguments:
        tool = {"source": "rest", "url": url, "resources": resources, "days": 0, "job": {"retry_attempts": 0}}
        by_name = {"username": "ada", "credential": {"file": str(secrets / "password")}}
        config = {
            "lake": str(data / "lake"),
            "store": {"url": f"sqlite:///{data / 'jobs.db'}", "pickle_arguments": True},
            "job": {"retry_attempts": 0},
            "tools": {"orders": tool | {"credential": {"env": "ORDERS_TOKEN"}}, "people": tool | by_name},
        }
        (data / "config.yaml").write_text(yaml.safe_dump(config))
        env = os.environ | {
            "ORDERS_TOKEN": SECRET,
            "EXECUTOR_ADAPTER_CONFIG": str(data / "config.yaml"),
            "PYTHONPATH": str(ROOT),
            "PREFECT_LOGGING_LEVEL": "DEBUG",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "httpx,httpcore,executor_adapter,mine",
            "XDG_CONFIG_HOME": str(data / "user"),
        }
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=env, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-4000:]
    assert "failed: 4 of" in output
    assert "completed" in output

    # The secrets were used, and the places that are searched hold what was said of them.
    sent = {headers.get("authorization") for headers in seen}
    assert sent == {f"Bearer {SECRET}", f"Basic {ENCODED}"}
    time.sleep(1.0)  # The server writes the last log lines.
    assert files_with("/refused: answered 401", home)
    assert files_with("(hidden)", home)
    assert files_with("cannot use (hidden)", home)
    assert files_with("no account of (hidden)", data)
    assert files_with("ORDERS_TOKEN", data)

    for secret in (SECRET, PASSWORD, ENCODED):
        assert secret not in output
        assert files_with(secret, data, home) == []
        assert [line for line in arguments if secret.encode() in line] == []
