"""`run`: one job from the shell; its exit code says how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executor_adapter.cli.run import CODES, parse_arguments
from executor_adapter.job import ErrorCode
from tests.cli.conftest import Command

MODULE = "work_of_a_user"


def test_the_value_goes_to_stdout_and_all_else_to_stderr(command: Command) -> None:
    said = command("run", f"{MODULE}:collect", "--arg", "flights", "--arg", "year=2014")
    assert said.code == 0
    assert said.out == 'collecting flights\n{"records_collected": 3, "year": 2014}\n'
    assert said.err.startswith("completed in ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("fail", "-a", "MY_CODE"), 1, "MY_CODE: no good"),
        (("fail", "-a", "DATA_ERROR"), 65, "DATA_ERROR: no good"),
        (("fail", "-a", "REQUEST_ERROR"), 65, "REQUEST_ERROR"),
        (("fail", "-a", "CONFIGURATION_ERROR"), 78, "CONFIGURATION_ERROR"),
        (("slow", "-a", "60", "--max-runtime", "0.3"), 124, "TIMEOUT_ERROR: ran longer than max_runtime=0.3 s"),
        (("slow", "-a", "60", "--deadline", "0.5"), 124, "DEADLINE_EXCEEDED"),
        (("crash",), 134, "WORKER_CRASHED"),
        (("eat", "--memory-limit", "300MiB"), 137, "MEMORY_LIMIT"),
    ],
)
def test_the_exit_code_says_how_it_ended(command: Command, words: tuple[str, ...], code: int, said: str) -> None:
    answer = command("run", f"{MODULE}:{words[0]}", *words[1:], "--retries", "0")
    assert answer.code == code
    assert said in answer.err


def test_codes_are_of_known_errors_and_none_is_that_of_success() -> None:
    assert CODES.keys() <= set(ErrorCode)
    assert not {0, 1, 2} & set(CODES.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((f"{MODULE}:nothing",), "module 'work_of_a_user' has no attribute 'nothing'"),
        (("no_such_module:f",), "No module named 'no_such_module'"),
        ((f"{MODULE}:collect",), "missing a required argument: 'tool'"),
        ((f"{MODULE}:collect", "-a", "x", "--pool", "pond"), "pool='pond'"),
        (
            (f"{MODULE}:collect", "-a", "x", "--pool", "thread", "--memory-limit", "1GiB"),
            "memory_limit needs a process",
        ),
        ((f"{MODULE}:collect", "-a", "x", "--max-runtime", "-1"), "max_runtime=-1.0"),
    ],
)
def test_what_can_never_run_is_refused(command: Command, words: tuple[str, ...], said: str) -> None:
    answer = command("run", *words)
    assert answer.code == 2
    assert said in " ".join(answer.err.replace("│", "").split())


def test_a_retry_is_said_while_one_waits(command: Command) -> None:
    said = command("run", f"{MODULE}:fail", "-a", "NETWORK_ERROR", "--retries", "1", "--retry-delay", "0.01")
    assert said.code == 1
    assert "attempt 1 of 2 failed, the next in 0.0" in said.err
    assert "NETWORK_ERROR: no good" in said.err


def test_as_json_it_says_all_of_it(command: Command) -> None:
    said = command("run", f"{MODULE}:collect", "-a", "flights", "--pool", "thread", "--json")
    told = json.loads(said.out.splitlines()[-1])
    assert (told["status"], told["value"]["year"], told["records_processed"]) == ("completed", 2013, 3)


def test_it_is_remembered_in_the_store(command: Command) -> None:
    command("run", f"{MODULE}:collect", "-a", "flights", "--type", "nightly", "--tool", "radar")
    (job,) = command("jobs", "list", "--tool", "radar", "--json").json["jobs"]
    assert (job["status"], job["job_type"]) == ("completed", "nightly")


def test_arguments_are_json_or_text() -> None:
    assert parse_arguments(["3", "x", '"a=b"', "n=[1]", "s=text", "1=2"]) == (
        (3, "x", "a=b", "1=2"),
        {"n": [1], "s": "text"},
    )


def test_an_interrupt_ends_the_job_and_leaves_no_process(home: Path) -> None:
    """Ctrl-C: exit code 130 within seconds, and the function's process is gone."""
    (home / "marked.py").write_text(
        "import os, time\ndef wait(path):\n    open(path, 'w').write(str(os.getpid()))\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "executor_adapter.cli", "run", "marked:wait", "-a", str(home / "pid")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        cwd=home,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 30
    while not (home / "pid").exists() or not (home / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    worker = int((home / "pid").read_text())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130, error
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
