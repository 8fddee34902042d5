from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.process_pool.harness import Harness, harness


@pytest.fixture
def pool() -> Iterator[Harness]:
    """A process pool of two workers, under a supervisor that the test turns."""
    with harness() as made:
        yield made
