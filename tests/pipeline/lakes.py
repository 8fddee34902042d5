"""What the tests of the lake share: a small table, and how it is written and read."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from executor_adapter.pipeline.lake.table import LakeTable, Writer

ROWS = pa.table({"id": [1, 2, 3], "note": ["a", "b", "c"]})


def lake_table(root: Path, **settings: Any) -> LakeTable:
    return LakeTable(root=root, layer="raw", tool="shop", name="order lines", **settings)


def write(table: LakeTable, window: str, *batches: pa.Table, **given: Any) -> Writer:
    with table.writing(window, **{"fingerprint": "v1"} | given) as writer:
        for each in batches:
            writer.add(each)
    return writer


def write_rows(table: LakeTable, window: str, rows: list[dict[str, Any]], **given: Any) -> Writer:
    return write(table, window, pa.Table.from_pylist(rows), **given)


def all_rows(table: LakeTable) -> list[dict[str, Any]]:
    """The rows of a table as any reader finds them in its folder, without their windows."""
    return ds.dataset(table.folder).to_table().to_pylist()


def at(second: int) -> datetime:
    """A moment, for runs whose order counts."""
    return datetime.fromisoformat(f"2026-01-01T00:00:{second:02}+00:00")
