"""Hosts that are killed with 50 jobs: every job finishes, none is lost, and none runs twice at once.

The environment variables CRASH_ROUNDS and CRASH_SEED set the number of rounds and repeat the seed of a failed run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from executor_adapter.store import open_store
from tests.contract.stores.crash_rounds import run_rounds
from tests.contract.stores.databases import url_of


def run(kind: str, directory: Path, count: int, *, with_broken: bool = False) -> None:
    seed = int(os.environ.get("CRASH_SEED", random.randrange(1 << 20)))
    with url_of(kind, directory) as url:
        store = open_store(url)
        try:
            count = int(os.environ.get("CRASH_ROUNDS", count))
            run_rounds(store, url, directory, count=count, seed=seed, with_broken=with_broken)
        finally:
            store.close()


@pytest.mark.parametrize(("kind", "count"), [("sqlite", 2), pytest.param("postgresql", 2, marks=pytest.mark.nightly)])
def test_no_job_is_lost_when_hosts_are_killed(kind: str, count: int, tmp_path: Path) -> None:
    """Every job of a killed host finishes, and none runs twice at once."""
    run(kind, tmp_path, count)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("kind", "count"), [("sqlite", 200), ("postgresql", 100)])
def test_no_job_is_lost_in_many_rounds(kind: str, count: int, tmp_path: Path) -> None:
    """The same holds in hundreds of rounds, in stores with rows that make no sense."""
    run(kind, tmp_path, count, with_broken=True)
