"""The pytest plugin: the tests of a user run with it, beside other plugins, and it loads nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
USER_TESTS = ROOT / "tests" / "typecheck" / "scripts" / "user_tests.py"


def run_pytest(*arguments: str, cwd: Path, **env: str) -> str:
    """Run pytest as a user does, with warnings as errors and without the settings of this project."""
    command = [sys.executable, "-m", "pytest", "-p", "executor_adapter.pytest", "-W", "error", "-c", "none.ini", "-q"]
    (cwd / "none.ini").touch()
    done = subprocess.run(
        [*command, "--rootdir", str(cwd), "-p", "no:cacheprovider", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "processes",
    [pytest.param((), id="alone"), pytest.param(("-n", "2"), id="xdist", marks=pytest.mark.nightly)],
)
def test_the_tests_of_a_user_pass(processes: tuple[str, ...], tmp_path: Path) -> None:
    """The fixtures work beside pytest-mock, in one process and under pytest-xdist, without a warning."""
    output = run_pytest(*processes, str(USER_TESTS), cwd=tmp_path)
    written = USER_TESTS.read_text().count("\ndef test_")
    assert f"{written} passed in " in output, output  # No error at the end of a test, and no warning.


def test_the_plugin_is_light(tmp_path: Path) -> None:
    """A pytest run that uses no fixture loads nothing of the package but the plugin, and no Prefect or pydantic."""
    (tmp_path / "test_none.py").write_text(
        "import sys\n\n"
        "def test_what_is_loaded():\n"
        "    ours = {name for name in sys.modules if name.startswith('executor_adapter')}\n"
        "    assert ours == {'executor_adapter', 'executor_adapter.lazy', 'executor_adapter.pytest'}\n"
        "    assert not {'prefect', 'pydantic', 'asyncio'} & sys.modules.keys()\n"
    )
    output = run_pytest(cwd=tmp_path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert "1 passed" in output, output


def test_a_run_of_pytest_shows_the_fixtures(tmp_path: Path) -> None:
    """`pytest --fixtures` lists each fixture with its meaning."""
    output = run_pytest("--fixtures", cwd=tmp_path)
    for name in ("inline_executor", "inline_clock", "set_testing", "one_attempt"):
        assert f"\n{name}" in output, output
    assert "no docstring available" not in output.partition("executor_adapter.pytest")[2]
