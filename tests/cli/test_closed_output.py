"""Commands whose reader leaves, as in `jobs list | head -1`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from executor_adapter.store import JobStore
from tests.cli.conftest import fill, record
from tests.waiting import PATIENCE

TALKS = """
def f():
    for n in range(1500):
        print("line", n, "x" * 200)
"""


def environment(unbuffered: bool) -> dict[str, str]:
    """Return the environment of a command, with or without PYTHONUNBUFFERED."""
    rest = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return rest | ({"PYTHONUNBUFFERED": "1"} if unbuffered else {})


def run_without_reader(home: Path, *words: str, with_stderr: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command whose stdout, and stderr if asked, is a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return subprocess.run(
            [sys.executable, "-m", "executor_adapter.cli", *words],
            stdout=writer,
            stderr=writer if with_stderr else subprocess.PIPE,
            text=True,
            cwd=home,
            env=environment(unbuffered=False),
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(writer)


NIGHTLY = pytest.mark.nightly


@pytest.mark.parametrize("unbuffered", [False, pytest.param(True, marks=NIGHTLY)])
def test_run_goes_on_when_its_reader_leaves(home: Path, unbuffered: bool) -> None:
    """`run ... | head -1`: the exit code says how the job ended, and stderr has only the summary."""
    (home / "talks.py").write_text(TALKS)
    words = [sys.executable, "-m", "executor_adapter.cli", "run", "talks:f"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home, env=environment(unbuffered)
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("line 0 ")
        process.stdout.close()
        error = process.stderr.read()
    assert process.returncode == 0
    assert re.fullmatch(r"(.*waiting for a worker.*\n)*completed in .*\n", error)


@pytest.mark.parametrize("with_stderr", [pytest.param(False, marks=NIGHTLY), True])
@pytest.mark.parametrize(("function", "code"), [pytest.param("collect", 0, marks=NIGHTLY), ("fail", 65)])
def test_run_keeps_its_exit_code_without_a_reader(home: Path, function: str, code: int, with_stderr: bool) -> None:
    """Output without a reader does not change the exit code of `run`."""
    argument = "flights" if function == "collect" else "DATA_ERROR"
    words = ("run", f"work_of_a_user:{function}", "-a", argument, "--set", "retry_attempts=0")
    assert run_without_reader(home, *words, with_stderr=with_stderr).returncode == code


@pytest.mark.parametrize(
    "words",
    [
        ("jobs", "list"),
        ("--help",),
        *(
            pytest.param(words, marks=NIGHTLY)
            for words in (
                ("jobs", "list", "--json"),
                ("jobs", "show", "one"),
                ("jobs", "watch", "--json"),
                ("stats",),
                ("config", "show", "--all"),
                ("config", "schema"),
                ("version",),
            )
        ),
    ],
)
def test_other_commands_end_quietly_when_their_reader_leaves(
    home: Path, store: JobStore, words: tuple[str, ...]
) -> None:
    """Other commands end without a traceback, and not with the code of an interpreter that cannot write."""
    fill(store, record("one"))
    done = run_without_reader(home, *words)
    assert done.stderr == ""
    assert done.returncode in (0, 1)
