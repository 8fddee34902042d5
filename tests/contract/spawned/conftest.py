from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.process_pool.harness import Harness, harness


@pytest.fixture(scope="module")
def pool() -> Iterator[Harness]:
    """Two spawned workers under a supervisor that the tests turn; one pool for all, since interpreters start slowly."""
    with harness(2, start_method="spawn") as made:
        yield made
