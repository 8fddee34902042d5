from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.process_pool.harness import Harness, harness


@pytest.fixture
def pool() -> Iterator[Harness]:
    """A harness with a process pool of two workers."""
    with harness() as made:
        yield made
