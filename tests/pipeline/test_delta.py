"""A Delta table has the windows, types and rows of a table of the lake, and is written once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.exceptions import DataProcessingException
from executor_adapter.pipeline import LakeTable, Published, compact_windows, publish_to_delta, remove_windows
from tests.pipeline.lakes import lake_table, write, write_rows
from tests.waiting import PATIENCE

S3_SERVER = """
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""


def published(table: LakeTable, uri: str, **given: Any) -> Published:
    """Publish, and check that the Delta table has what the lake has."""
    found = publish_to_delta(table, uri, **given)
    assert rows_of(uri, **given) == sorted(
        (row | {"window": window} for window in table.windows() for row in table.read(window).to_pylist()), key=str
    )
    return found


def rows_of(uri: str, storage_options: dict[str, str] | None = None) -> list[dict[str, Any]]:
    rows = DeltaTable(uri, storage_options=storage_options).to_pyarrow_table().to_pylist()
    return sorted(rows, key=str)


def test_only_what_has_changed_is_copied(tmp_path: Path) -> None:
    """New and changed windows are written, those that are gone are deleted, and nothing is done twice."""
    table, uri = lake_table(tmp_path, key=("id",)), str(tmp_path / "delta")
    assert publish_to_delta(table, uri) == Published()
    write_rows(table, "2026-01", [{"id": 1, "note": "a"}, {"id": 2, "note": "b"}])
    write_rows(table, "it's 2", [{"id": 3, "note": "c"}])
    assert published(table, uri).written == ("2026-01", "it's 2")
    version = DeltaTable(uri).version()
    assert published(table, uri) == Published()
    assert DeltaTable(uri).version() == version
    write_rows(table, "2026-01", [{"id": 2, "note": "B"}], fingerprint="v2")
    assert published(table, uri).written == ("2026-01",)
    remove_windows(table, ["it's 2"])
    assert published(table, uri).removed == ("it's 2",)
    write_rows(table, "it's 2", [{"id": 3, "note": "c"}])
    assert published(table, uri).written == ("it's 2",)


def test_the_types_are_those_of_the_lake(tmp_path: Path) -> None:
    """Every type of a schema is kept; a column that is wider or new changes all rows, and 2.5 stays 2.5."""
    table, uri = lake_table(tmp_path), str(tmp_path / "delta")
    row = {"n": 1, "price": Decimal("1.50"), "day": date(2026, 1, 1), "ok": True, "text": "00501", "none": None}
    write_rows(table, "a", [row])
    publish_to_delta(table, uri)
    assert rows_of(uri) == [{name: value for name, value in row.items() if name != "none"} | {"window": "a"}]
    write(table, "b", pa.table({"n": [2.5], "new": ["x"]}))
    found = publish_to_delta(table, uri)
    assert found.changes == ("n: int64 becomes double", "new: string is new, and null in the rows before")
    assert [(each["n"], each["new"], each["text"]) for each in rows_of(uri)] == [(1.0, None, "00501"), (2.5, "x", None)]
    write(table, "c", pa.table({"n": [3.5], "more": [7]}))
    assert publish_to_delta(table, uri).written == ("c",)
    assert sorted(each["n"] for each in rows_of(uri)) == [1.0, 2.5, 3.5]


def test_a_table_of_other_types_is_refused(tmp_path: Path) -> None:
    """What somebody else made is not narrowed, and the message names the column."""
    uri = str(tmp_path / "delta")
    write_deltalake(uri, pa.table({"id": [1.5], "window": ["old"]}), partition_by=["window"])
    table = lake_table(tmp_path)
    write_rows(table, "a", [{"id": "x"}])
    with pytest.raises(DataProcessingException, match="column id: the table has double") as caught:
        publish_to_delta(table, uri)
    assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert rows_of(uri) == [{"id": 1.5, "window": "old"}]


def test_a_compacted_table_is_the_same(tmp_path: Path) -> None:
    """Windows that share a file in the lake are windows there."""
    table, uri = lake_table(tmp_path), str(tmp_path / "delta")
    for day in ("2026-01-01", "2026-01-02"):
        write_rows(table, day, [{"id": day}])
    compact_windows(table, "month", date(2026, 6, 1))
    assert published(table, uri).written == ("2026-01-01", "2026-01-02")


@pytest.mark.parametrize("exists", [False, True])
def test_two_jobs_publish_at_once(tmp_path: Path, exists: bool) -> None:
    """One of them may be told to try again, as it does, and the table is right in the end, also a new one."""
    table, uri = lake_table(tmp_path), str(tmp_path / "delta")
    for number in range(4):
        write_rows(table, f"w{number}", [{"id": number}])
    if exists:
        publish_to_delta(table, uri)
        for number in range(4):
            write_rows(table, f"w{number}", [{"id": number + 10}], fingerprint="v2")
    fields: dict[str, Any] = {"function": publish_to_delta, "args": (table, uri), "pool": "process"}
    fields["retry"] = RetryPolicy(retry_delay=0.1)
    with JobExecutor(2) as executor:
        for job in [executor.submit(Job(**fields)) for _ in range(2)]:
            job.result(PATIENCE)  # An attempt that was overtaken may have written windows that the next one need not.
    assert published(table, uri).written == ()


@pytest.fixture
def s3_server() -> Iterator[str]:
    """A real S3 server with the bucket `lake`: in a process, because deltalake holds the interpreter while it waits."""
    server = subprocess.Popen([sys.executable, "-c", S3_SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        client = boto3.client("s3", "us-east-1", endpoint_url=url, aws_access_key_id="k", aws_secret_access_key="s")
        client.create_bucket(Bucket="lake")
        yield url
    finally:
        server.kill()
        server.communicate()


def test_a_delta_table_is_on_s3(tmp_path: Path, s3_server: str) -> None:
    """A real S3 server has the table; its errors have codes, and show no secret."""
    options = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hush-hush-1234",
        "AWS_REGION": "us-east-1",
    }
    table, uri = lake_table(tmp_path), "s3://lake/orders"
    write_rows(table, "a", [{"id": 1}])
    assert published(table, uri, storage_options=options).written == ("a",)
    write_rows(table, "a", [{"id": 2}], fingerprint="v2")
    assert published(table, uri, storage_options=options).written == ("a",)
    with pytest.raises(DataProcessingException) as caught:
        publish_to_delta(table, "s3://nowhere/x", storage_options=options)
    assert "hush-hush-1234" not in str(caught.value)
    assert "404 Not Found" in str(caught.value)
    assert not {"\n", "\x1b"} & set(str(caught.value))
