"""The tests keep the rules of the test suite."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests import docstrings
from tests.api_server import as_json, serving
from tests.run import end_all_of
from tests.scheduling import TESTS, known_durations, rank
from tests.servers import ROOT, RUN_VARIABLE, api_client, processes_of
from tests.waiting import PATIENCE, wait_for


def test_every_test_has_a_docstring() -> None:
    """Each test states its behaviour in a docstring."""
    missing = [line for file in docstrings.test_files() for line in docstrings.tests_without_docstring(file)]
    assert missing == []


def run_tests(*arguments: str) -> str:
    """Run tests in a process that collects files one by one; they must pass."""
    command = [sys.executable, "-m", "tests.run", "-n", "1", *arguments]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout


@pytest.mark.nightly
def test_the_last_line_of_a_run_adds_its_groups_up() -> None:
    """Each group runs its own files, in processes that collect them one by one; the last line counts all tests."""
    files = ["tests/unit/test_fate.py", "tests/examples/test_readme.py", "tests/unit/test_outcome.py"]
    checks, *others, total = map(int, re.findall(r"=== (\d+) passed in", run_tests(*files)))
    assert checks == len(re.findall(r"^def test_", (ROOT / files[1]).read_text(), re.MULTILINE))
    assert others
    assert checks + sum(others) == total


@pytest.mark.nightly
def test_a_file_without_a_selected_test_may_stand_between_others() -> None:
    """What a folder keeps for its tests is released after a file of which no test was selected, too.

    The files run in the order of their durations.
    """
    files = ["tests/unit/test_job.py", "tests/unit/test_tracebacks.py", "tests/contract/test_quarantine.py"]
    said = run_tests("-v", "--group", "tests", "--deselect", files[1], *files)
    assert "skipped" not in said
    ran = dict.fromkeys(re.findall(r"PASSED tests/([\w/]+\.py)::", said))
    durations = known_durations()
    assert len(ran) == 2
    assert [durations[file] for file in ran] == sorted((durations[file] for file in ran), reverse=True)


def test_the_longest_files_start_first_and_before_them_the_unknown() -> None:
    """Files start in the order of their durations; one that is not in the list may be the longest."""
    names = ["unit/new.py", "unit/long.py", "unit/short.py"]
    durations = {"unit/short.py": 1.0, "unit/long.py": 30.0}
    for files in itertools.permutations(TESTS / name for name in names):
        assert sorted(files, key=lambda file: rank(file, durations)) == [TESTS / name for name in names]


PROGRAM = """
import sys, time
from pathlib import Path
from tests.servers import new_user_env, running
folder = Path(sys.argv[1])
command = [sys.executable, "-c", "import time; print('runs', flush=True); time.sleep(3600)"]
with running(command, env=new_user_env(folder, MARK=sys.argv[2]), cwd=folder, log=folder / "log"):
    time.sleep(3600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_tests_that_are_ended_leave_no_process(tmp_path: Path, number: signal.Signals) -> None:
    """A server, or another process that a test runs, ends with the tests, however these end."""
    mark, log = uuid4().hex, tmp_path / "log"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), mark]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, preexec_fn=reset_sigint) as tests:
        wait_for(lambda: log.exists() and log.read_text(), what="a process of the tests")
        assert processes_of(mark)
        tests.send_signal(number)
    wait_for(lambda: not processes_of(mark), what="the end of its process")


@pytest.mark.nightly
def test_the_last_tests_end_the_server_that_all_share(tmp_path: Path) -> None:
    """A server outlives tests that are killed while others use it, and nothing of it the last, which Ctrl-C ends."""
    mark, folder = uuid4().hex, tmp_path / "shared"
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"SHARED": str(folder), "TMPDIR": str(tmp_path), "MARK": mark}
    command = [sys.executable, "-m", "pytest", "-n", "1", "-p", "no:cacheprovider", "tests/unit/kept_server.py"]
    options: dict[str, Any] = {"cwd": ROOT, "env": env, "stdout": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(command, **options) as first, subprocess.Popen(command, **options) as last:
        used = [folder / f"used by {each.pid}" for each in (first, last)]
        wait_for(lambda: all(each.exists() and each.read_text() for each in used))
        (url,) = {each.read_text() for each in used}
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert httpx.get(url).is_success
        os.killpg(last.pid, signal.SIGINT)
        assert last.wait(PATIENCE) == pytest.ExitCode.INTERRUPTED
    wait_for(lambda: not processes_of(mark), what="the end of the server")
    assert list(tmp_path.glob("kept-server-*")) == []


def test_what_a_run_of_tests_leaves_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    """What still runs at the end of all tests, which Ctrl-C may have interrupted, is killed and named."""
    run = uuid4().hex
    left = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(3600)"], env=os.environ | {RUN_VARIABLE: run}
    )
    wait_for(lambda: processes_of(run))
    end_all_of(run)
    assert left.wait(PATIENCE) == -signal.SIGKILL
    assert "ended, since a test has left it: " in capsys.readouterr().out


def reset_sigint() -> None:
    """Let SIGINT interrupt a program, which a background job of a shell would ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_the_client_of_tests_asks_a_busy_server_again() -> None:
    """A request that a server answers with 503 is sent again, with its body, until it is answered."""
    answers = iter([(503, {}, b"busy"), (503, {}, b"busy"), as_json([1])])
    with serving(lambda *_: next(answers)) as (url, requests), api_client(url) as client:
        assert client.post("/flows/filter", json={"limit": 1}).json() == [1]
    assert requests == [("/flows/filter", {"limit": 1})] * 3
