"""Programs of users are clean under plain mypy and pyright, both strict, and what is wrong in one is marked.

The scripts are in `scripts`, with the settings of both checkers: one run of each checks them all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(__file__).parent / "scripts"
NAMES = sorted(path.name for path in SCRIPTS.glob("*.py"))
CHECKS_WITHIN = 110.0
RED = "# red"

Messages = Mapping[str, Mapping[int, list[str]]]
"""What a checker says, by script and line."""

COMMANDS = {
    "mypy": [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--output", "json", *NAMES],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"],
}


@pytest.fixture(scope="module")
def running() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Both checkers, started at once: each takes seconds."""
    env = os.environ | {"MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "scripts")}
    started = {
        name: subprocess.Popen(command, cwd=SCRIPTS, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, command in COMMANDS.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", params=COMMANDS)
def messages(request: pytest.FixtureRequest, running: dict[str, subprocess.Popen[str]]) -> Messages:
    """What one of the checkers says about all scripts."""
    output, errors = running[request.param].communicate(timeout=CHECKS_WITHIN)
    assert running[request.param].returncode == 1, output + errors  # It found errors, and did not fail.
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for script, line, text in (of_mypy if request.param == "mypy" else of_pyright)(output):
        found[Path(script).name][line].append(text)
    return found


def of_mypy(output: str) -> Iterator[tuple[str, int, str]]:
    for found in map(json.loads, output.splitlines()):
        if found["severity"] == "error":
            yield found["file"], found["line"], found["message"]


def of_pyright(output: str) -> Iterator[tuple[str, int, str]]:
    report: dict[str, Any] = json.loads(output)
    assert report["summary"]["filesAnalyzed"] == len(NAMES)
    for found in report["generalDiagnostics"]:
        yield found["file"], found["range"]["start"]["line"] + 1, found["message"]


@pytest.mark.parametrize("script", NAMES)
def test_what_a_checker_says_of_a_script(script: str, messages: Messages) -> None:
    """A checker marks each line that ends in `# red`, and no other."""
    lines = (SCRIPTS / script).read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith(RED)}
    said = messages.get(script, {})
    assert {number: said[number] for number in said.keys() - expected} == {}
    assert {number: lines[number - 1] for number in expected - said.keys()} == {}
