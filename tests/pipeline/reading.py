"""Reads bytes as a landed file, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from executor_adapter.config import Format
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline import Window
from executor_adapter.pipeline.sources.landing import find_landing, receiving
from executor_adapter.pipeline.sources.reading import read_rows

Rows = list[dict[str, str | None]]


def read(root: Path, content: bytes, suffix: str = ".csv", **format: Any) -> tuple[Rows, list[tuple[int, str, str]]]:
    """Land the bytes as one file and read them; return the rows, and the rejects as (line, reason, text)."""
    with receiving(root, "t", "t", Window(), fingerprint=suffix) as receiver:
        receiver.add(suffix, [content], origin="there")
    landing = find_landing(root, "t", "t", Window())
    assert landing is not None
    rejects: list[pa.RecordBatch] = []
    rows: Rows = []
    for batch in read_rows(landing, Format(**format), rejects.append):
        assert {str(each) for each in batch.schema.types} <= {"string"}
        rows += batch.to_pylist()
    found = [each for batch in rejects for each in batch.to_pylist()]
    assert {each["delivery"] for each in found} <= {"there"}
    return rows, [(each["line"], each["reason"], each["text"]) for each in found]


def failure(root: Path, content: bytes, suffix: str = ".csv", **format: Any) -> Any:
    """Return the error that reading the bytes raises."""
    with pytest.raises(DataCollectionException) as caught:
        read(root, content, suffix, **format)
    return caught.value
