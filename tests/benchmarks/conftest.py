from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.benchmarks.figures import Report


@pytest.fixture(scope="session")
def report() -> Iterator[Report]:
    """Where benchmarks put their rows; all are shown once more at the end."""
    gathered = Report()
    yield gathered
    gathered.show()
