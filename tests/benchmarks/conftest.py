from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.figures import Report


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """The report that collects the rows of all benchmarks and prints them again at the end."""
    gathered = Report()
    yield gathered
    gathered.show()
