"""Tests of what is read from the outcome of an attempt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from executor_adapter.worker.values import records_in


@pytest.mark.parametrize(
    ("value", "records"),
    [
        ({"records_collected": 3}, 3),
        ({"records_processed": np.int64(4)}, 4),
        ({"records_collected": np.uint8(5)}, 5),
        ({"records_collected": True}, None),
        ({"records_collected": np.True_}, None),
        ({"records_collected": 3.0}, None),
        ({"records_collected": None, "records_processed": 6}, 6),
        ({}, None),
    ],
)
def test_record_counts_are_integers_of_any_type(value: dict[str, Any], records: int | None) -> None:
    """A record count is read if it is an integer of any type, NumPy's included, but not a bool."""
    found = records_in(value)
    assert (found, type(found)) == (records, type(records))
