"""The tests keep the rules of the test suite."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests import docstrings
from tests.servers import ROOT


def test_every_test_has_a_docstring() -> None:
    """Each test states its behaviour in a docstring."""
    missing = [line for file in docstrings.test_files() for line in docstrings.tests_without_docstring(file)]
    assert missing == []


def test_the_last_line_of_a_run_adds_its_groups_up() -> None:
    """Each group runs its own files, in processes that collect them one by one; the last line counts all tests."""
    files = ["tests/unit/test_fate.py", "tests/examples/test_readme.py", "tests/unit/test_outcome.py"]
    command = [sys.executable, "-m", "tests.run", "-n", "1", *files]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    checks, tests, both = map(int, re.findall(r"=== (\d+) passed in", done.stdout))
    assert checks == len(re.findall(r"^def test_", (ROOT / files[1]).read_text(), re.MULTILINE))
    assert 0 < checks < tests < both == checks + tests
