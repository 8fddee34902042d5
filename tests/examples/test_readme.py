"""README says what is true: every Python block runs, and prints what stands below it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from executor_adapter.config import load_config
from tests.servers import ROOT, Server, new_user_env, prefect_server

README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; `printed` is the block of text right below it, where there is one."""

    line: int
    language: str
    text: str
    printed: str | None


def blocks(language: str) -> list[Block]:
    found = list(FENCE.finditer(README))
    follows = {
        match.start(): later[2]
        for match, later in itertools.pairwise(found)
        if later[1] == "text" and not README[match.end() : later.start()].strip()
    }
    return [
        Block(README.count("\n", 0, match.start()) + 1, match[1], match[2], follows.get(match.start()))
        for match in found
        if match[1] == language
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("server")
    with prefect_server(directory, new_user_env(directory)) as server:
        yield server


def test_the_first_block_sells_it() -> None:
    """A reader sees what it is for before the first line of prose about it."""
    first = FENCE.search(README)
    assert first is not None
    assert first[1] == "python"
    assert "@job_task" in first[2]
    assert README.count("\n", 0, first.start()) < 10


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"line-{block.line}")
def test_a_block_runs_and_prints_what_it_says(block: Block, server: Server, tmp_path: Path) -> None:
    """As a script of a user's own, against a real Prefect server where it uses one."""
    script = tmp_path / "script.py"
    script.write_text(block.text)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=server.env, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (block.printed or "")


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"line-{block.line}")
def test_a_configuration_is_accepted(block: Block, tmp_path: Path) -> None:
    """... with the values it shows."""
    file = tmp_path / "config.yaml"
    file.write_text(block.text)
    assert load_config(file).collection.job_timeout == 3600


def test_every_target_that_is_named_exists() -> None:
    """`make WORD` in README, and the files it links to."""
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)) <= targets
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
