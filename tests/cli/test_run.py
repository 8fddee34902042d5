"""`run`: one job from the shell; its exit code says how it ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import JobExecutor
from executor_adapter.cli.run import EXIT_CODES, parse_arguments
from executor_adapter.config import Settings
from executor_adapter.job.status import ErrorCode, JobStatus
from executor_adapter.store import JobStore
from tests.cli.conftest import Command, fill, record
from tests.waiting import PATIENCE, wait_for

MODULE = "work_of_a_user"


def test_the_value_goes_to_stdout_and_all_else_to_stderr(command: Command) -> None:
    """`run` prints the value to stdout and the summary to stderr."""
    result = command("run", f"{MODULE}:collect", "--arg", "flights", "--arg", "year=2014")
    assert result.code == 0
    assert result.out == 'collecting flights\n{"records_collected": 3, "year": 2014}\n'
    assert re.search(r"^completed in ", result.err, re.MULTILINE)  # After "waiting for a worker" on a slow machine.


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("fail", "-a", "MY_CODE", "--pool", "thread"), 1, "MY_CODE: no good"),
        (("fail", "-a", "DATA_ERROR", "--pool", "thread"), 65, "DATA_ERROR: no good"),
        (("fail", "-a", "REQUEST_ERROR", "--pool", "thread"), 65, "REQUEST_ERROR"),
        (("fail", "-a", "CONFIGURATION_ERROR", "--pool", "thread"), 78, "CONFIGURATION_ERROR"),
        (("slow", "-a", "60", "--set", "max_runtime=0.3"), 124, "TIMEOUT_ERROR: ran longer than max_runtime=0.3 s"),
        (("slow", "-a", "60", "--set", "deadline=0.5"), 124, "DEADLINE_EXCEEDED"),
        (("crash",), 134, "WORKER_CRASHED"),
        (("eat", "--set", "memory_limit=300MiB"), 137, "MEMORY_LIMIT"),
    ],
)
def test_the_exit_code_shows_how_the_job_ended(
    command: Command, words: tuple[str, ...], code: int, message: str
) -> None:
    """Each kind of failure has its exit code."""
    answer = command("run", f"{MODULE}:{words[0]}", *words[1:], "--set", "retry_attempts=0")
    assert answer.code == code
    assert message in answer.err


def test_exit_codes_belong_to_known_errors_and_none_is_that_of_success() -> None:
    """Every exit code belongs to a known error code, and none is 0, 1 or 2."""
    assert EXIT_CODES.keys() <= set(ErrorCode)
    assert not {0, 1, 2} & set(EXIT_CODES.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((f"{MODULE}:nothing",), "module 'work_of_a_user' has no attribute 'nothing'"),
        (("no_such_module:f",), "No module named 'no_such_module'"),
        ((f"{MODULE}:collect", "-a", "x", "--pool", "pond"), "pool='pond'"),
        (
            (f"{MODULE}:collect", "-a", "x", "--pool", "thread", "--set", "memory_limit=1GiB"),
            "memory_limit needs a process",
        ),
        ((f"{MODULE}:collect", "-a", "x", "--set", "max_runtime=-1"), "max_runtime=-1"),
    ],
)
def test_what_can_never_run_is_refused(command: Command, words: tuple[str, ...], message: str) -> None:
    """`run` refuses a job that can never run with exit code 2 and the reason."""
    answer = command("run", *words)
    assert answer.code == 2
    assert message in " ".join(answer.err.replace("│", "").split())


def test_a_retry_is_printed_while_it_waits(home: Path) -> None:
    """`run` prints why and when a failed attempt is retried, as every executor does."""
    retry = ("--set", "retry_attempts=1", "--set", "retry_delay=0.01")
    done = in_shell(home, "run", f"{MODULE}:fail", "-a", "NETWORK_ERROR", *retry)
    assert done.returncode == 1
    assert "attempt 1 of 2 failed (NETWORK_ERROR: no good), next in 0.0" in done.stderr


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_as_json_stdout_has_the_whole_result_and_nothing_else(command: Command, pool: str) -> None:
    """`run --json` prints the whole result as JSON, and nothing else to stdout."""
    result = command("run", f"{MODULE}:collect", "-a", "flights", "--pool", pool, "--json")
    printed = result.json
    assert (printed["status"], printed["value"]["year"], printed["records_processed"]) == ("completed", 2013, 3)
    assert "collecting flights" in result.err


def test_as_json_what_a_module_or_a_child_process_prints_goes_to_stderr_too(home: Path) -> None:
    """With --json the output of imported modules, and of what a job in a process starts, goes to stderr."""
    (home / "loud.py").write_text(
        "import os\nprint('imported')\ndef f():\n    print('printed')\n    os.system('echo child')\n    return 1\n"
    )
    done = in_shell(home, "run", "loud:f", "--json")
    assert json.loads(done.stdout)["value"] == 1
    for message in ("imported", "printed", "child"):
        assert message in done.stderr


ODD = """
def tuples(): return {(1, 2): 3, "x": {4: (5, 6)}}
def numbers(): return [float("nan"), float("inf"), -float("inf"), 1.5]
def itself():
    found = []
    found.append(found)
    return found
def huge(): return 10 ** 5000
def surrogate(): return {"name": "\\ud800", "size": 1}
class Unshowable:
    def __repr__(self): raise ValueError("no")
def unshowable(): return Unshowable()
"""


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("tuples", {"1,2": 3, "x": {"4": [5, 6]}}),
        ("numbers", [None, None, None, 1.5]),
        ("itself", "[[...]]"),
        ("huge", "<int: its repr fails>"),
        ("surrogate", {"name": "\ud800", "size": 1}),
        ("unshowable", "<Unserializable Unshowable object>"),
    ],
)
def test_any_result_is_printed_as_valid_json(command: Command, home: Path, function: str, value: object) -> None:
    """Any result is printed as valid JSON: odd keys as text, NaN and infinities as null, all else by its repr."""
    (home / "odd_results.py").write_text(ODD)
    result = command("run", f"odd_results:{function}", "--pool", "thread", "--json")
    assert result.code == 0
    assert json.loads(result.out, parse_constant=pytest.fail)["value"] == value
    assert command("run", f"odd_results:{function}", "--pool", "thread").code == 0


@pytest.mark.parametrize(
    "words",
    [
        ("jobs", "list"),
        pytest.param(("jobs", "list", "--json"), marks=pytest.mark.nightly),
        pytest.param(("run", "math:sqrt", "-a", "4"), marks=pytest.mark.nightly),
    ],
)
def test_a_full_disk_gives_one_line(home: Path, store: JobStore, words: tuple[str, ...]) -> None:
    """Output to a full disk gives exit code 1 and one line."""
    fill(store, record("one"))
    with open("/dev/full", "w") as full:
        done = in_shell(home, *words, stdout=full)
    assert done.returncode == 1
    assert done.stderr == "executor-adapter: [Errno 28] No space left on device\n"


def test_a_terminal_without_a_letter_gets_it_escaped(home: Path, store: JobStore) -> None:
    """Letters that the encoding of stdout lacks are escaped."""
    fill(store, record("caf\xe9", JobStatus.FAILED, error_code="DATA_ERROR", error_message="\u4e2d"))
    (home / "letters.py").write_text("def f():\n    return '\u4e2d'\n", encoding="utf-8")
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert r"caf\xe9" in in_shell(home, "jobs", "list", env=ascii_only).stdout
    assert json.loads(in_shell(home, "run", "letters:f", "--json", env=ascii_only).stdout)["value"] == "\u4e2d"


def test_where_stdout_is_closed_nothing_is_printed(home: Path) -> None:
    """`run` works with a closed stdout."""
    done = in_shell(home, "run", "math:sqrt", "-a", "4", stdout=None, preexec_fn=lambda: os.close(1))
    assert done.returncode == 0
    assert re.fullmatch(r"(.*waiting for a worker.*\n)*completed in .*\n", done.stderr)


def in_shell(home: Path, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a process of its own."""
    given: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    return subprocess.run(
        [sys.executable, "-m", "executor_adapter.cli", *words],
        text=True,
        cwd=home,
        timeout=PATIENCE,
        check=False,
        **given,
    )


def test_it_is_remembered_in_the_store(command: Command) -> None:
    """A job of `run` is recorded in the store."""
    command("run", f"{MODULE}:collect", "-a", "flights", "--set", "job_type=nightly", "--set", "tool_name=radar")
    (job,) = command("jobs", "list", "--tool", "radar", "--json").json["jobs"]
    assert (job["status"], job["job_type"]) == ("completed", "nightly")


def test_jobs_that_others_left_in_the_store_are_left_to_them(command: Command, home: Path, store: JobStore) -> None:
    """`run` takes over no other job of its store, neither at the start nor later."""
    (home / "config.yaml").write_text("store: {url: 'sqlite:///jobs.db', recover_every: 0.01}")
    call = json.dumps({"function": "nobody_has:this"})
    store.enqueue(record("theirs", JobStatus.PENDING, function="nobody_has:this", call=call))
    assert command("run", f"{MODULE}:talk", "-a", "pause=0.2").code == 0
    assert {job["status"] for job in command("jobs", "list", "--json").json["jobs"]} == {"pending", "completed"}


def test_it_is_cancelled_and_retried_as_any_job_is(command: Command, home: Path) -> None:
    """A job of `run` can be cancelled and retried from another shell."""
    words = [sys.executable, "-m", "executor_adapter.cli", "run", f"{MODULE}:slow", "-a", "60"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=home) as process:
        wait_for(lambda: command("jobs", "list", "-s", "running").out.startswith("ID"))
        (job,) = command("jobs", "list", "--json").json["jobs"]
        assert command("jobs", "cancel", job["job_id"]).code == 0
        assert process.wait(PATIENCE) == 130
    again = command("jobs", "retry", job["job_id"], "--set", "args=[0]", "--json").json[0]
    with JobExecutor(1, config=Settings(), store=f"sqlite:///{home / 'jobs.db'}"):
        pass  # the executor of a program, which runs the job
    assert command("jobs", "show", again["job_id"], "--json").json["status"] == "completed"


def test_arguments_are_json_or_text() -> None:
    """Arguments are parsed as JSON, or else are text, by position or by name."""
    assert parse_arguments(["3", "x", '"a=b"', "n=[1]", "s=text", "1=2"]) == (
        (3, "x", "a=b", "1=2"),
        {"n": [1], "s": "text"},
    )


def test_an_interrupt_ends_the_job_and_leaves_no_process(home: Path) -> None:
    """Ctrl-C ends `run` with exit code 130 within seconds and leaves no process."""
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
    wait_for(lambda: (home / "pid").exists() and (home / "pid").read_text())
    worker = int((home / "pid").read_text())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, error
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_failed_job_is_understood_from_the_shell(command: Command, home: Path) -> None:
    """`run`, `jobs list`, `jobs show`, `jobs logs` and their JSON name an error's class, text and traceback."""
    (home / "broken.py").write_text("def look_up():\n    print('looking')\n    return {}['nope']\n")
    ran = command("run", "broken:look_up", "--set", "retry_attempts=0")
    assert ran.code == 1
    traceback = "Traceback (most recent call last):\n"
    traceback += f"  File \"{home}/broken.py\", line 3, in look_up\n    return {{}}['nope']\n"
    assert traceback in ran.err
    assert re.search(r"^failed in [\d.]+ s EXECUTION_ERROR: KeyError: 'nope'$", ran.err, re.MULTILINE)
    listed = command("jobs", "list")
    assert re.search(r"^ID +STATUS +FUNCTION .*\n.* failed +look_up .* EXECUTION_ERROR: KeyError: 'nope'", listed.out)
    job_id = command("jobs", "list", "--json").json["jobs"][0]["job_id"]
    shown = command("jobs", "show", job_id)
    assert "EXECUTION_ERROR: KeyError: 'nope'" in shown.out
    assert traceback in shown.out
    assert command("jobs", "show", job_id, "--json").json["traceback"].endswith("\nKeyError: 'nope'")
    logs = command("jobs", "logs", job_id).out
    shown = textwrap.indent(traceback, "    ")  # So that no line of it passes for one of the log.
    assert logs.index("looking") < logs.index("EXECUTION_ERROR: KeyError: 'nope'") < logs.index(shown)
    last = json.loads(command("jobs", "logs", job_id, "--json").out.splitlines()[-1])
    assert (last["source"], last["text"].splitlines()[-1]) == ("traceback", "KeyError: 'nope'")
    answer = command("run", "broken:look_up", "--set", "retry_attempts=0", "--json").json
    assert answer["error_message"] == "KeyError: 'nope'"
    assert answer["traceback"].startswith(traceback)
