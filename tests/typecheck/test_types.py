"""Programs of users are clean under plain mypy and pyright, and what is wrong in one is marked.

The scripts in `scripts` are checked strictly. The code of README and of the pages has no types of its own where that
reads better: it is checked as both checkers do without settings, bodies of untyped functions included. One run of each
checker checks all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.examples.pages import blocks
from tests.servers import ROOT

SCRIPTS = Path(__file__).parent / "scripts"
NAMES = sorted(path.name for path in SCRIPTS.glob("*.py"))
BLOCKS = {f"block_{number}.py": block for number, block in enumerate(blocks("python"))}
WITH_CODE = sorted({block.page for block in BLOCKS.values()})
RED = "# red"
BASIC = "# pyright: basic\n"
"""The first line of a block's file: it is not checked strictly."""

Messages = Mapping[str, Mapping[int, list[str]]]
"""What a checker says, by script and line."""

COMMANDS = {
    "mypy": [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--output", "json", "."],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"],
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Both checkers, started at once: each takes seconds."""
    folder = tmp_path_factory.mktemp("programs")
    for path in SCRIPTS.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    settings = json.loads((folder / "pyrightconfig.json").read_text()) | {"extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    pages = folder / "pages"
    pages.mkdir()
    (pages / "__init__.py").touch()
    for name, block in BLOCKS.items():
        (pages / name).write_text(BASIC + block.text)
    env = os.environ | {"MYPYPATH": str(ROOT), "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "scripts")}
    started = {
        name: subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, command in COMMANDS.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module", params=COMMANDS)
def messages(request: pytest.FixtureRequest, running: dict[str, subprocess.Popen[str]]) -> Messages:
    """What one of the checkers says about all programs."""
    output, errors = running[request.param].communicate()
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
    assert report["summary"]["filesAnalyzed"] == len(NAMES) + len(BLOCKS) + 1
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


def test_a_wrong_pool_is_answered_in_a_line(messages: Messages) -> None:
    """A checker names the option, and not all that the function takes; but for `map`, which is overloaded."""
    lines = (SCRIPTS / "user_mistakes.py").read_text().splitlines()
    wrong = [number for number, line in enumerate(lines, 1) if 'pool="proces"' in line and ".map(" not in line]
    said = {number: messages["user_mistakes.py"][number] for number in wrong}
    assert len(said) == 6
    assert {number: texts for number, texts in said.items() if not any('"pool"' in text for text in texts)} == {}


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_checker_says_nothing_of_the_code_of_a_page(page: Path, messages: Messages) -> None:
    """Readers copy it into programs that they check."""
    said = {
        f"{page.name}:{block.line + line - 1}": texts
        for name, block in BLOCKS.items()
        if block.page == page
        for line, texts in messages.get(name, {}).items()
    }
    assert said == {}
