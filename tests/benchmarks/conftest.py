from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.data_file import save
from tests.benchmarks.figures import Report


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """The report that collects the rows of all benchmarks and prints them again at the end.

    It also adds them to the data file that the environment variable BENCH_DATA names.
    """
    gathered = Report()
    yield gathered
    gathered.show()
    if path := os.environ.get("BENCH_DATA"):
        save(gathered.rows, Path(path))
