"""Lands and reads a resource of an API, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executor_adapter.config import RestTool
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline import ConfiguredTable, Landing, Window
from executor_adapter.pipeline.sources.reading import read_rows
from executor_adapter.pipeline.sources.rest.resource import land_resource

DAY = Window(name="2026-01-02", since="2026-01-02T00:00:00+00:00", until="2026-01-03T00:00:00+00:00")


def tool(url: str, *, resource: dict[str, Any] | None = None, **fields: Any) -> RestTool:
    """Describe an API with one resource, `items`."""
    resources = {"items": {"path": "/items", **(resource or {})}, **fields.pop("resources", {})}
    return RestTool.model_validate({"source": "rest", "url": url, "resources": resources, **fields})


def land(root: Path, described: RestTool, table: str = "items", window: Window = DAY, **more: Any) -> Landing:
    resource = ConfiguredTable(lake=root, tool_name="api", tool=described, name=table)
    return land_resource(resource, described, window, **more)


def rows(landing: Landing, described: RestTool, table: str = "items") -> list[dict[str, Any]]:
    """Return the rows of a landing; rejects fail the test."""

    def reject(some: Any) -> None:
        raise AssertionError(some.to_pylist())

    return [row for batch in read_rows(landing, described.resources[table], reject) for row in batch.to_pylist()]


def collect(root: Path, described: RestTool, table: str = "items") -> list[dict[str, Any]]:
    """Land the resource and return its rows."""
    return rows(land(root, described, table), described, table)


def failure(root: Path, described: RestTool, table: str = "items") -> DataCollectionException:
    """Return the error of landing the resource, which leaves no landing and no half-written file."""
    with pytest.raises(DataCollectionException) as caught:
        land(root, described, table)
    assert list(root.rglob("manifest.json")) == list(root.rglob(".tmp-*")) == []
    return caught.value
