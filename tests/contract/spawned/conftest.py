from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.process_pool.harness import Harness, harness


@pytest.fixture(scope="module")
def pool() -> Iterator[Harness]:
    """A harness with two spawned workers, shared by the tests of a module since interpreters start slowly."""
    with harness(2, start_method="spawn") as made:
        yield made
