"""Random programs with executors of all kinds on real stores: all that they promise holds, and nothing is left.

`python -m tests.stress --seed N` repeats one; see `__main__.py` of this folder.
"""

from __future__ import annotations

import datetime
import os
import random
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.contract.stores.databases import SERVER
from tests.stress.plan import draw

ROOT = Path(__file__).parents[2]


@pytest.fixture
def without() -> list[str]:
    """The features that cannot be had here; with CI=true all can."""
    try:
        psycopg.connect(f"{SERVER}/test", connect_timeout=10).close()
    except psycopg.OperationalError:
        if os.environ.get("CI") == "true":
            raise
        return ["--without", "postgresql"]
    return []


def stress(*arguments: str, hash_seed: int = 0) -> str:
    """Run the program; return what it prints, which names the seed and the plan of each fault."""
    environment = os.environ | {"PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", "tests.stress", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_a_seed_draws_the_same_plan_everywhere() -> None:
    """A plan depends on its seed alone, not on the process that draws it."""
    here = "".join(f"{draw(seed, ()).words()}\n" for seed in range(30))
    assert stress("--words", "--seeds", "0-29", hash_seed=1) == here


@pytest.mark.timeout(1800)
def test_random_programs(without: list[str]) -> None:
    """Every future is done, every state legal and every row right, in some known plans."""
    stress("--seeds", "0-1", "--jobs", "2", *without)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_random_programs_for_a_minute(without: list[str]) -> None:
    """The same holds in plans of the day."""
    today = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")
    stress("--from", f"{today}000", "--seconds", "60", "--jobs", "2", *without)


@pytest.mark.chaos
@pytest.mark.timeout(7200)
def test_random_programs_for_long(without: list[str]) -> None:
    """The same holds in hundreds of plans that nobody has run before."""
    first = random.SystemRandom().randrange(1 << 40)
    stress("--from", str(first), "--seconds", "1200", "--jobs", "2", *without)
