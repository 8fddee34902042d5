"""Tests of the sentinel, which reports the death of its host, with a real host and a reporter that writes a file."""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pytest_mock import MockerFixture

from executor_adapter.executor.sentinel import MAX_REPLACEMENTS, SentinelClient
from executor_adapter.prefect.crashes.reporter import wait_for_workers
from executor_adapter.worker import sentinel
from tests.waiting import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def host(how: str, file: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.unit.sentinel_host", how, str(file)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, process_group=0) as it:
        try:
            yield it
        finally:
            it.kill()


def pid_from(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline().split()[0])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def reports(file: Path) -> list[Any]:
    found = [json.loads(path.read_text()) for path in sorted(file.parent.glob(f"{file.name}-*"))]
    return [(report["server"], report["flow_runs"]) for report in found]


DEATH = [("one", {"first": 2}), ("two", {"second": 1})]


def test_the_death_of_a_host_is_reported(tmp_path: Path) -> None:
    """A reporter for each environment gets the flow runs of a host that a signal to its process group has killed."""
    file = tmp_path / "report"
    with host("sleep", file) as process:
        pid = pid_from(process)
        # Standard input, output and error, the host's pidfd and the module's file, and nothing of the host.
        assert len(os.listdir(f"/proc/{pid}/fd")) <= 5
        before = time.time()
        os.killpg(process.pid, signal.SIGTERM)
        wait_for(lambda: not is_alive(pid))
    assert reports(file) == DEATH
    died_at = json.loads((tmp_path / "report-one").read_text())["died_at"]
    assert before <= died_at <= time.time()


def test_a_child_of_the_host_does_not_hide_its_death(tmp_path: Path) -> None:
    """A forked child, which inherits the pipe, has no sentinel, and the death of its parent is reported."""
    file = tmp_path / "report"
    with host("fork", file) as process:
        pid = pid_from(process)
        assert process.stdout is not None
        child, its_sentinel = process.stdout.readline().split()
        assert its_sentinel == "None"
        try:
            process.kill()
            wait_for(lambda: not is_alive(pid))
            assert reports(file) == DEATH
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_an_orderly_exit_is_not_reported(tmp_path: Path) -> None:
    """The sentinel has exited when its host has, and has started no reporter."""
    file = tmp_path / "report"
    with host("exit", file) as process:
        pid = pid_from(process)
        assert process.wait(PATIENCE) == 0
        assert not is_alive(pid)
    assert reports(file) == []


@pytest.mark.parametrize(("how", "more"), [("lose", {"third": 1}), ("watch", {})])
def test_a_killed_sentinel_is_replaced(tmp_path: Path, how: str, more: dict[str, int]) -> None:
    """The next announcement or check starts another one, which knows all flow runs, although SIGPIPE is deadly here."""
    file = tmp_path / "report"
    with host(how, file) as process:
        first, second = pid_from(process), pid_from(process)
        assert first != second
        process.kill()
        wait_for(lambda: not is_alive(second))
    assert reports(file) == [("one", {"first": 2} | more), ("two", {"second": 1})]


@pytest.mark.parametrize("how", ["many", "stop"])
def test_the_sentinel_of_many_flow_runs_is_replaced(tmp_path: Path, how: str) -> None:
    """One that is killed, or stopped, has one successor that knows all flow runs, and reports no death of its own."""
    file = tmp_path / "report"
    with host(how, file) as process:
        first, second = pid_from(process), pid_from(process)
        assert first != second
        assert not is_alive(first)
        assert reports(file) == []
        process.kill()
        wait_for(lambda: not is_alive(second))
    (_, one), (_, two) = reports(file)
    assert (one, two["second"], len(two)) == ({"first": 2}, 1, 601)


def test_a_sentinel_that_always_dies_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """A few replacements are tried, and then one warning says what is lost and which command mends it."""
    client = SentinelClient()
    try:
        client.announce("first", 1, {})
        for _ in range(MAX_REPLACEMENTS + 2):
            if client.pid is not None:
                os.kill(client.pid, signal.SIGKILL)
                os.waitid(os.P_PID, client.pid, os.WEXITED | os.WNOWAIT)
            client.ensure_alive()
        assert client.pid is None
    finally:
        client.stop()
        atexit.unregister(client.stop)
    assert caplog.text.count("starting another one") == MAX_REPLACEMENTS
    assert caplog.text.count("executor-adapter prefect sweep") == 1


def test_a_sentinel_that_the_kernel_holds_up_is_not_waited_for(mocker: MockerFixture) -> None:
    """One that is killed and does not go, as in a file system that is away, holds up no flow and no exit."""
    client, waited_for = SentinelClient(), list[subprocess.Popen[bytes]]()

    def wait_in_vain(process: subprocess.Popen[bytes], timeout: float | None = None) -> None:
        waited_for.append(process)
        assert timeout is not None, "this would not end"
        raise subprocess.TimeoutExpired(process.args, timeout)

    atexit.unregister(client.stop)
    client.announce("first", 1, {})
    mocker.patch.object(subprocess.Popen, "wait", wait_in_vain)
    client.stop()
    assert client.pid is None
    mocker.stopall()
    waited_for[0].wait(PATIENCE)


@contextmanager
def sentinel_of(host_pid: int, file: Path) -> Iterator[subprocess.Popen[bytes]]:
    reporter = [sys.executable, "-c", "from tests.unit.fake_reporter import main; main()"]
    setup = {"host": host_pid, "presence": "", "path": sys.path, "reporter": reporter}
    command = [sys.executable, "-c", sentinel.BOOTSTRAP, json.dumps(setup)]
    environment = os.environ | {"REPORT": str(file), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE) as process:
        yield process


def message(flow_run: str) -> bytes:
    return json.dumps({"flow_run": flow_run, "run_count": 1, "environment": {"SERVER": "one"}}).encode() + b"\n"


def test_the_report_names_the_newest_flow_runs(tmp_path: Path) -> None:
    """The oldest flow runs are left out of a report where there are too many."""
    file = tmp_path / "report"
    with sentinel_of(os.getpid(), file) as process:
        assert process.stdin is not None
        process.stdin.write(b"".join(message(str(number)) for number in range(sentinel.MAX_FLOW_RUNS + 5)))
        process.stdin.close()  # The host has closed its end of the pipe, as at its death.
        process.wait(PATIENCE)
    ((_, flow_runs),) = reports(file)
    assert list(flow_runs) == [str(number) for number in range(5, sentinel.MAX_FLOW_RUNS + 5)]


def test_a_reporter_waits_for_the_workers() -> None:
    """While a worker of the dead process holds its presence, the reporter waits, but not for ever."""
    name = secrets.token_hex(16)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as presence:
        presence.bind(f"\0executor-adapter/{name}")
        began = time.monotonic()
        wait_for_workers(name, timeout=0.2)
        assert time.monotonic() - began >= 0.2
        threading.Timer(0.1, presence.close).start()
        wait_for_workers(name, timeout=PATIENCE)
