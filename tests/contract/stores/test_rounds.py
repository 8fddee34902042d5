"""Hosts that are killed with 50 jobs: every job reaches its end, none is lost, none runs twice at once.

CRASH_ROUNDS and CRASH_SEED in the environment give another number of rounds and the seed of a run to be repeated.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from executor_adapter.store import open_store
from tests.contract.stores.databases import url_of
from tests.contract.stores.rounds import run_rounds


def run(kind: str, directory: Path, count: int) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.randrange(1 << 20)))
    with url_of(kind, directory) as url:
        store = open_store(url)
        try:
            run_rounds(store, url, directory, count=int(os.environ.get("CRASH_ROUNDS", count)), seed=seed)
        finally:
            store.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("kind", "count"), [("sqlite", 6), ("postgresql", 3)])
def test_nothing_is_lost_when_hosts_are_killed(kind: str, count: int, tmp_path: Path) -> None:
    run(kind, tmp_path, count)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "count"), [("sqlite", 200), ("postgresql", 100)])
def test_nothing_is_lost_in_many_rounds(kind: str, count: int, tmp_path: Path) -> None:
    run(kind, tmp_path, count)
