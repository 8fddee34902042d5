"""The copies that the page on tables shows hold what the table holds, on real servers, and are as short as it says."""

from __future__ import annotations

import datetime as dt
import inspect
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import fsspec
import httpx
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import s3fs
import sqlalchemy as sa
from moto.server import ThreadedMotoServer

from executor_adapter.pipeline import LakeTable, remove_windows
from tests.contract.stores.databases import postgresql_url
from tests.examples.pages import DOCS, blocks_of

MAX_LINES = 15
MONTHS = ("2026-01", "O'Hare 1/2")

Copy = Callable[[], list[str]]
"""Copies the table, and returns the windows that changed."""
Read = Callable[[], list[dict[str, Any]]]
"""Returns the rows of the copy, with their windows."""


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The functions of the page, by name."""
    pytest.importorskip("deltalake", reason="the copy to Delta Lake needs the package deltalake")
    (block,) = (each for each in blocks_of(DOCS / "how-to/tables.md") if "def copy_to_delta" in each.text)
    file = tmp_path_factory.mktemp("page") / "copies.py"
    file.write_text(block.text)
    return runpy.run_path(str(file))


@pytest.fixture
def table(tmp_path: Path) -> LakeTable:
    return LakeTable(root=tmp_path / "lake", layer="processed", tool="shop", name="sales")


@pytest.fixture(params=["s3", "delta", "postgresql"])
def sink(
    request: pytest.FixtureRequest, functions: dict[str, Any], table: LakeTable, tmp_path: Path
) -> Iterator[tuple[Copy, Read]]:
    """How a table is copied to one of the places, and how the copy is read there."""
    copy = functions[f"copy_to_{request.param}"]
    match request.param:
        case "s3":
            with _s3() as store:
                yield lambda: copy(table, store, "bucket/sales"), lambda: _rows_in("bucket/sales", store)
        case "delta":
            from deltalake import DeltaTable

            url = str(tmp_path / "delta")
            yield lambda: copy(table, url), lambda: _sorted(DeltaTable(url).to_pyarrow_table().to_pylist())
        case _:
            with postgresql_url() as url:
                engine = sa.create_engine(url.replace("://", "+psycopg://"), poolclass=sa.NullPool)

                def work(do: Callable[[sa.Connection], Any]) -> Any:
                    with engine.begin() as connection:
                        return do(connection)

                read = sa.text("SELECT * FROM sales")
                yield (
                    lambda: work(lambda connection: copy(table, connection, "sales")),
                    lambda: work(lambda connection: _sorted([*connection.execute(read).mappings()])),
                )


@contextmanager
def _s3() -> Iterator[s3fs.S3FileSystem]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    httpx.post(f"http://{host}:{port}/moto-api/reset")  # Servers of one process have their buckets together.
    named = {"endpoint_url": f"http://{host}:{port}", "region_name": "us-east-1"}
    boto3.client("s3", aws_access_key_id="k", aws_secret_access_key="s", **named).create_bucket(Bucket="bucket")
    yield s3fs.S3FileSystem(key="k", secret="s", client_kwargs=named)
    fsspec.config.conf.clear()
    server.stop()


def _rows_in(folder: str, store: Any = None) -> list[dict[str, Any]]:
    return _sorted(ds.dataset(folder, partitioning="hive", filesystem=store).to_table().to_pylist())


def _sorted(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    named = [{name: value for name, value in row.items() if name != "version"} for row in rows]
    return sorted(named, key=lambda row: (row["window"], row["id"]))


def write(table: LakeTable, window: str, version: str, *ids: int) -> None:
    """Write rows of all types of the lake, of which some have no values."""
    rows = [
        {
            "id": each,
            "price": Decimal(each) / 4 if each % 2 else None,
            "at": dt.datetime(2026, 1, each, 7, 30, tzinfo=dt.UTC) if each % 2 else None,
            "day": dt.date(2026, 1, each),
            "paid": bool(each % 3) if each % 2 else None,
            "stock": each if each % 2 else None,
            "note": None if each % 2 else f"number {each}",
        }
        for each in ids
    ]
    types = {"price": pa.decimal128(8, 2), "at": pa.timestamp("us", "UTC"), "paid": pa.bool_(), "stock": pa.int64()}
    types = {"id": pa.int64(), **types, "day": pa.date32(), "note": pa.string()}
    with table.writing(window, fingerprint=version) as writer:
        writer.add(pa.Table.from_pylist(rows, pa.schema(types)))


def test_a_copy_has_what_changed(sink: tuple[Copy, Read], table: LakeTable) -> None:
    """New windows, changed ones and those that went or are empty now are copied, and no others; values are the same."""
    copy, read = sink
    for number, window in enumerate(MONTHS):
        write(table, window, "a" * 64, 2 * number + 1, 2 * number + 2)
    assert (sorted(copy()), read()) == (sorted(MONTHS), _rows_in(str(table.folder)))
    assert copy() == []
    write(table, MONTHS[1], "b" * 64, 8, 9)
    assert (copy(), read()) == ([MONTHS[1]], _rows_in(str(table.folder)))
    write(table, MONTHS[0], "c" * 64)
    assert (copy(), read(), copy()) == ([MONTHS[0]], _rows_in(str(table.folder)), [])
    write(table, MONTHS[0], "d" * 64, 7)
    remove_windows(table, [MONTHS[1]])
    assert (sorted(copy()), read()) == (sorted(MONTHS), _rows_in(str(table.folder)))
    assert copy() == []


def test_a_copy_has_what_was_made_again(sink: tuple[Copy, Read], table: LakeTable) -> None:
    """Other code of a step, or an answer that comes once more, gives other rows with the same fingerprint."""
    copy, read = sink
    for each in (1, 2):
        write(table, MONTHS[1], "a" * 64, each)
        assert (copy(), read()) == ([MONTHS[1]], _rows_in(str(table.folder)))
    assert copy() == []


def test_delta_takes_a_new_column(functions: dict[str, Any], table: LakeTable, tmp_path: Path) -> None:
    """It is null in the rows of the windows that were copied before."""
    from deltalake import DeltaTable

    url = str(tmp_path / "delta")
    for window, rows in (("a", [{"id": 1}]), ("b", [{"id": 2, "note": "new"}])):
        with table.writing(window, fingerprint=window) as writer:
            writer.add(pa.Table.from_pylist(rows))
        assert functions["copy_to_delta"](table, url) == [window]
    assert _sorted(DeltaTable(url).to_pyarrow_table().to_pylist()) == _rows_in(str(table.folder))


def test_a_copy_is_a_few_lines(functions: dict[str, Any]) -> None:
    """Each function is as short as a person copies it."""
    copies = [each for name, each in functions.items() if name.startswith("copy_to_")]
    assert len(copies) == 3
    assert [each.__name__ for each in copies if len(inspect.getsource(each).splitlines()) > MAX_LINES] == []
