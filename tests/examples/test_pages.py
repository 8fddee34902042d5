"""README and documentation say what is true: their code runs and prints what stands below it, their commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from executor_adapter.cli.app import app
from executor_adapter.config import Settings, load_config
from tests.examples.pages import PAGES, Block, blocks
from tests.servers import ROOT, WITHOUT_SCHEDULES, new_user_env, prefect_server
from tests.waiting import PATIENCE

RUNNER = Path(__file__).with_name("run_scripts.py")
ENDS_WITHIN = 2.5 * PATIENCE
"""Seconds that all scripts of one process may take, on a machine that has other work."""


@dataclass(frozen=True)
class Outcome:
    """How the script of one block ended."""

    exit_code: int | None
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[Block, Outcome]:
    """The blocks that were selected, run as scripts of a user's own in two processes: with Prefect, and without.

    Where a server is configured, schedulers import Prefect, and from then on each worker process does.
    """
    selected = (item.callspec.params["block"] for item in request.session.items if _runs_a_block(item))
    chosen = list(dict.fromkeys(selected))  # The test that runs may be among the items twice.
    found: dict[Block, Outcome] = {}
    home = tmp_path_factory.mktemp("home")
    env = new_user_env(home)
    with prefect_server(home, env | WITHOUT_SCHEDULES) as server:
        of_both = (
            ([block for block in chosen if block.uses_prefect], server.env),
            ([block for block in chosen if not block.uses_prefect], env),
        )
        started = [_start(group, its_env, tmp_path_factory.mktemp("blocks")) for group, its_env in of_both if group]
        for group, directories, process in started:
            _wait(process)
            found |= {block: _outcome(directory) for block, directory in zip(group, directories, strict=True)}
    return found


def _runs_a_block(item: pytest.Item) -> bool:
    return getattr(item, "originalname", "") == test_a_block_runs_and_prints_what_stands_below_it.__name__


Started = tuple[list[Block], list[Path], subprocess.Popen[bytes]]


def _start(group: list[Block], env: dict[str, str], directory: Path) -> Started:
    directories = [directory / f"{number:03}" for number in range(len(group))]
    for block, place in zip(group, directories, strict=True):
        place.mkdir()
        (place / "script.py").write_text(block.text)
    command = [sys.executable, str(RUNNER), *map(str, directories)]
    return group, directories, subprocess.Popen(command, env=env, cwd=directory, stdin=subprocess.DEVNULL)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(ENDS_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _outcome(directory: Path) -> Outcome:
    def read(name: str) -> str:
        file = directory / name
        return file.read_text() if file.exists() else ""

    exit_code = read("exit_code")
    return Outcome(int(exit_code) if exit_code else None, read("stdout"), read("stderr"))


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_block_runs_and_prints_what_stands_below_it(block: Block, outcomes: dict[Block, Outcome]) -> None:
    """It runs as a script of a user's own, against a real Prefect server where it uses one."""
    outcome = outcomes[block]
    assert outcome.exit_code == 0, outcome.stderr or "it did not end"
    assert outcome.stdout == (block.printed or "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_fence_of_a_page_is_read(page: Path) -> None:
    """No block hides from these tests: each begins at the start of a line, and says its language."""
    fences = re.findall(r"^( *)```(\w*)", page.read_text(), re.MULTILINE)
    assert [fence for fence in fences if fence[0]] == []
    assert len(fences) % 2 == 0
    assert {language for _, language in fences[::2]} <= {"python", "text", "bash", "yaml", "toml", "mermaid"}


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_block_of_toml_can_be_read(block: Block) -> None:
    """A block of TOML is valid."""
    assert tomllib.loads(block.text)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_a_configuration_is_accepted(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of YAML parses; one with our sections is a configuration that is accepted as it stands."""
    monkeypatch.chdir(tmp_path)
    content = yaml.safe_load(block.text)
    assert content
    if isinstance(content, dict) and content.keys() & Settings.model_fields.keys():
        file = tmp_path / "config.yaml"
        file.write_text(block.text)
        given = load_config(file).model_dump(exclude_unset=True)
        assert content.keys() <= given.keys()


# --- commands ---

COMMAND = "executor-adapter"


def _commands_shown() -> Iterator[tuple[str, str]]:
    """Each line of a bash block, and each command in the text, with where it is."""
    for block in blocks("bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield str(block), line
    for page in PAGES:
        for inline in re.findall(rf"`((?:{COMMAND}|make) [^`\n]+)`", page.read_text()):
            yield page.name, inline


def _words(line: str) -> Iterator[list[str]]:
    """The words of each command of a line: comments, variables and redirections left out."""
    command: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word in {"&&", "|", ";", ">", "<"}:
            yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z_]+=\S*", word):
            command.append(word)


@pytest.mark.parametrize(("where", "line"), sorted(set(_commands_shown())))
def test_a_command_exists(where: str, line: str) -> None:
    """Every make target, command, option, extra and script that is shown exists."""
    for words in _words(line):
        match words:
            case ["make", *rest]:
                wanted = {word for word in rest if "=" not in word and word.islower()}
                assert wanted <= _make_targets(), line
            case [first, *rest] if first == COMMAND:
                assert _unknown(rest) == [], line
            case ["pip", "install", *packages]:
                assert _extras(packages) <= _declared_extras(), line
            case ["python", script, *_] if script.endswith(".py"):
                assert (ROOT / script).exists(), line


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _unknown(words: list[str]) -> list[str]:
    """The words that are neither a command nor an option of it; one in capitals stands for any."""
    words = [word for word in words if not word.isupper()]
    command: Any = typer.main.get_command(app)
    known = {"--help", "-h", "--install-completion", "--show-completion", "..."}
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            break
        command, words = command.commands[words[0]], words[1:]
    known |= {option for parameter in command.params for option in parameter.opts}
    if hasattr(command, "commands"):
        return [word for word in words if word not in known]
    return [word for word in words if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known]


def _extras(packages: Iterable[str]) -> set[str]:
    return {extra for package in packages for extra in re.findall(r"[\w-]+", package.partition("[")[2])}


def _declared_extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    return set(re.findall(r"^([\w-]+) = \[", text, re.MULTILINE))


def test_a_file_that_is_named_exists() -> None:
    """A path of this clone that README, a page, ARCHITECTURE.md or the Makefile names is there."""
    folders = "deployments|flows|tasks|docs|tests"
    named = {
        (page.name, path)
        for page in (*PAGES, ROOT / "ARCHITECTURE.md")
        for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text())
    }
    package = {f"/{path.relative_to(ROOT)}" for path in (ROOT / "executor_adapter").rglob("*")}
    for page in (ROOT / "ARCHITECTURE.md", *(ROOT / "docs/explanation").glob("*.md")):
        for path in re.findall(r"`([\w/]+(?:\.py|/))`", page.read_text()):
            if not any(each.endswith(f"/{path.rstrip('/')}") for each in package):
                named.add((page.name, path))
    named |= {("Makefile", path) for path in re.findall(rf"(?:{folders})/[\w./-]+", (ROOT / "Makefile").read_text())}
    assert named
    assert sorted((page, path) for page, path in named if not os.path.exists(ROOT / path)) == []


def test_a_name_that_the_architecture_puts_into_a_file_is_there() -> None:
    """Where ARCHITECTURE.md says "`name` in `path`", the file defines the name."""
    said = re.findall(r"`([\w.]+)`\s+in\s+`([\w/]+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())
    assert said
    for name, path in said:
        files = [file for file in (ROOT / "executor_adapter").rglob("*.py") if str(file).endswith(f"/{path}")]
        text = "".join(file.read_text() for file in files)
        missing = [part for part in name.split(".") if not re.search(rf"(def|class) {part}\b", text)]
        assert missing == [], path
