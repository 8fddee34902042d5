"""Tests which code runs in the interpreters of guardian and workers, and with which flags they are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SHADOWS = ("pickle", "signal", "socket", "select", "struct", "array")

PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
sys.path.append(sys.argv[2])
from executor_adapter import Job, JobExecutor
from executor_adapter.config import ExecutorSettings, Settings
import reports
found = {}
for method in ("guardian", "spawn"):
    with JobExecutor(1, config=Settings(executor=ExecutorSettings(start_method=method))) as executor:
        found[method] = executor.run(Job(function=reports.report, pool="process", retry_attempts=0))
print(json.dumps({"here": reports.report(), **found}))
"""

REPORT = """
import sys
print([*sys.flags], sys._xoptions, [*dict.fromkeys(sys.warnoptions)], __debug__)
"""

REPORTS = """
import sys
def report():
    flags = [sys.flags.isolated, sys.flags.no_user_site, sys.flags.int_max_str_digits]
    flags += [sys.flags.optimize, sys.flags.dev_mode, sys.flags.utf8_mode, __debug__]
    return [flags, sys._xoptions, sys.warnoptions, sys.path]
"""


def run_program(tmp_path: Path, *flags: str) -> dict[str, Any]:
    """Run PROGRAM in a folder that hides modules of the standard library; return what it and its workers report."""
    there, program, modules = tmp_path / "there", tmp_path / "program", tmp_path / "modules"
    for folder in (there, program, modules):
        folder.mkdir()
    for name in SHADOWS:
        (there / f"{name}.py").write_text("raise SystemExit(f'{__file__} was run')\n")
    (modules / "reports.py").write_text(REPORTS)
    (program / "main.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *flags, str(program / "main.py"), str(ROOT), str(modules)],
        capture_output=True,
        text=True,
        cwd=there,
        env=environment,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert "was run" not in done.stderr
    reported: dict[str, Any] = json.loads(done.stdout)
    return reported


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("-I", "-X", "int_max_str_digits=5000", "-W", "ignore::UserWarning"),
        ("-O", "-X", "dev", "-X", "utf8", "-W", "error::UserWarning"),
    ],
)
def test_workers_run_no_file_of_the_working_directory(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Guardian and workers run no file of the working directory, and have the program's flags and sys.path."""
    reported = run_program(tmp_path, *flags)
    here = reported.pop("here")
    assert reported == {"guardian": here, "spawn": here}


@pytest.mark.parametrize(
    "flags",
    [("-P", "-OO", "-B", "-b"), ("-E", "-s", "-X", "dev", "-W", "error::BytesWarning"), ("-I", "-S", "-Xutf8=0")],
)
def test_a_further_interpreter_has_the_flags_of_this_one(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """The command of a further interpreter repeats the flags and options that this one was started with."""
    code = (
        f"import subprocess, sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from executor_adapter.worker.interpreter import interpreter_command\n"
        f"report = {REPORT!r}\n"
        "exec(report, {}); sys.stdout.flush()\n"
        "subprocess.run(interpreter_command(report), check=True)\n"
    )
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__file__} was run')\n")
    command = [sys.executable, "-P", *flags, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    here, there = done.stdout.splitlines()
    assert here == there


def test_a_module_of_the_working_directory_is_found_where_the_program_finds_it(tmp_path: Path) -> None:
    """A program that is given as text imports from its working directory, and so do its workers."""
    (tmp_path / "beside.py").write_text("def name():\n    return __name__\n")
    code = (
        "import beside\nfrom executor_adapter import Job, JobExecutor\n"
        "with JobExecutor(1) as executor:\n    print(executor.run(Job(function=beside.name, pool='process')))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=PATIENCE
    )
    assert (done.stdout, done.stderr) == ("beside\n", "")


IN_A_GONE_DIRECTORY = """
import os
from executor_adapter import Job, JobExecutor
os.rmdir(os.getcwd())
def here():
    return "done"
for pool, method in (("thread", "guardian"), ("process", "guardian"), ("process", "spawn")):
    os.environ["EXECUTOR_ADAPTER_EXECUTOR__START_METHOD"] = method
    with JobExecutor(1) as executor:
        print(executor.run(Job(function=here, pool=pool, retry_attempts=0)))
"""


def test_a_working_directory_that_is_gone_keeps_no_job_from_running(tmp_path: Path) -> None:
    """A program whose working directory was removed starts executors and workers all the same."""
    gone = tmp_path / "gone"
    gone.mkdir()
    program = tmp_path / "program.py"
    program.write_text(IN_A_GONE_DIRECTORY)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EXECUTOR_ADAPTER")}
    environment |= {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, cwd=gone, env=environment, timeout=PATIENCE
    )
    assert (done.stdout.split(), done.returncode) == (["done"] * 3, 0), done.stderr
