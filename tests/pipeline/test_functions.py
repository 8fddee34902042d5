"""Functions of one's own, and sources of dlt, are tools."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dlt
import pyarrow as pa
import pytest

from executor_adapter.config import Format, FunctionTool
from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import ConfigurationError, DataCollectionException
from executor_adapter.pipeline import ConfiguredTable, Window, land
from executor_adapter.pipeline.sources.reading import read_rows

ALL = Window()


def orders(count: int, since: str | None = None) -> Iterator[Any]:
    """Give objects, a page and a table."""
    yield {"id": 1, "at": datetime(2026, 1, 1, tzinfo=UTC), "since": since}
    yield [{"id": n, "tags": ["a", {"b": 1}]} for n in range(2, count)]
    yield pa.table({"id": [99]})


@dlt.resource
def resource(pages: int = 2) -> Iterator[Any]:
    """Give pages of objects, as resources of dlt do."""
    for page in range(pages):
        yield [{"id": page * 2}, {"id": page * 2 + 1}]


def no_rows() -> int:
    return 3


def wrong_rows() -> list[Any]:
    return [{"id": 1}, "text"]


def fails() -> Iterator[Any]:
    yield {"id": 1}
    raise ConnectionError("cut")


def collect(root: Path, name: str, window: Window = ALL, **arguments: Any) -> list[dict[str, Any]]:
    function = f"{__name__}:{name}" if ":" not in name else name
    tool = FunctionTool(
        source="function",
        batch_rows=2,
        tables={"t": {"function": function, "arguments": arguments}},  # type: ignore[dict-item]
    )
    landing = land(ConfiguredTable(lake=root, tool_name="own", tool=tool, name="t"), window)
    return [row for batch in read_rows(landing, Format(), lambda _: None) for row in batch.to_pylist()]


def test_objects_pages_and_tables_are_landed(tmp_path: Path) -> None:
    """What a function gives becomes text, in its order, and it is told the bound of the window."""
    found = collect(tmp_path, "orders", Window(name="d", since="2026-01-01"), count=5)
    assert [row["id"] for row in found] == ["1", "2", "3", "4", "99"]
    assert found[0] == {"id": "1", "at": "2026-01-01T00:00:00+00:00", "since": "2026-01-01", "tags": None}
    assert found[1]["tags"] == '["a", {"b": 1}]'


def test_a_source_of_dlt_is_a_tool(tmp_path: Path) -> None:
    """A resource of dlt is called and landed like any function."""
    assert [row["id"] for row in collect(tmp_path, "resource", pages=3)] == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("no_such", "CONFIGURATION_ERROR", "cannot be imported"),
        ("no_such_module:f", "CONFIGURATION_ERROR", "cannot be imported"),
        ("json:__name__", "EXECUTION_ERROR", "is not a callable object"),
        ("no_rows", "EXECUTION_ERROR", "'int' object is not iterable"),
        ("wrong_rows", "DATA_ERROR", "gave str: give mappings with keys, or Arrow"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, code: str, said: str) -> None:
    """A function that is not there, or gives something else, is an error with its code."""
    with pytest.raises((DataCollectionException, ConfigurationError, TypeError)) as caught:
        collect(tmp_path, name)
    assert (error_code_of(caught.value), said in str(caught.value)) == (code, True)
    assert list(tmp_path.rglob("manifest.json")) == []


def test_a_module_that_is_no_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the import of a module raises is a mistake in the configuration."""
    (tmp_path / "broken_source.py").write_text("def orders(:")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match="broken_source:orders' cannot be imported: SyntaxError"):
        collect(tmp_path, "broken_source:orders")


def test_what_a_function_raises_is_raised(tmp_path: Path) -> None:
    """An error in the function is the job's error, and no landing is left that counts."""
    with pytest.raises(ConnectionError):
        collect(tmp_path, "fails")
    assert list(tmp_path.rglob("manifest.json")) == []
