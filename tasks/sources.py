"""The sources of rows: CSV files and REST APIs. Plain functions; the error code decides whether a job is retried.

CONFIGURATION_ERROR (missing) and DATA_ERROR (broken) would fail again, so they are not retried. NETWORK_ERROR,
API_ERROR and RATE_LIMITED can pass, so they are.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from executor_adapter.config import FilesTool, FileTable, RestResource, RestTool, redacted
from executor_adapter.exceptions import DataCollectionException

SINGLE_WINDOW = "all"
"""The only window of a table that is not partitioned."""

_NULL_VALUES = ["", "NA"]


# --- files ---


def find_file(tool: FilesTool, table: FileTable) -> Path:
    """Return the path of a table's file. A package is located without importing it.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, the package or the file does not exist.
    """
    path = _directory(tool) / table.file
    if not path.is_file():
        raise _configuration_error(f"{path} does not exist: correct tables.*.file, or create the file")
    return path


def _directory(tool: FilesTool) -> Path:
    if tool.directory is not None:
        return tool.directory
    spec = importlib.util.find_spec(tool.package or "")
    if spec is None or not spec.submodule_search_locations:
        raise _configuration_error(f"package {tool.package} is not installed: pip install {tool.package}")
    return Path(spec.submodule_search_locations[0])


def fingerprint(tool: FilesTool, table: FileTable) -> str:
    """Return a text that identifies the content of the file: size and CRC-32, those of the member in a ZIP archive.

    The modification time is not part of it, because reinstalling a package changes the time but not the content.
    """
    path = find_file(tool, table)
    if path.suffix == ".zip":
        with _archive(path) as archive:
            info = archive.getinfo(_member(archive, path, table))
        return f"{path.name}/{info.filename} {info.file_size} bytes crc32 {info.CRC:08x}"
    content = path.read_bytes()
    return f"{path.name} {len(content)} bytes crc32 {zlib.crc32(content):08x}"


def count_windows(tool: FilesTool, table: FileTable) -> dict[str, int]:
    """Return the windows in the file, each with its number of rows; `table.windows` selects some of them.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, a selected window is not in the file; or as `read_file` raises.
    """
    counted = pc.value_counts(_window_column(read_file(tool, table), table))
    counts = {item["values"]: item["counts"] for item in counted.to_pylist()}
    for window in table.windows or ():
        if window not in counts:
            raise _configuration_error(
                f"window {window!r} is not in {table.file}: the windows are {', '.join(sorted(counts))}"
            )
    return {name: counts[name] for name in sorted(counts) if table.windows is None or name in table.windows}


def read_window(tool: FilesTool, table: FileTable, window: str) -> pa.Table:
    """Return the rows of one window as they are in the file; "NA" and empty values are null."""
    rows = read_file(tool, table)
    return rows.filter(pc.equal(_window_column(rows, table), window))


def read_file(tool: FilesTool, table: FileTable) -> pa.Table:
    """Return all rows of the table's file; each column has the narrowest type that fits all its values.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, the file does not exist; DATA_ERROR, the CSV or ZIP is broken.
    """
    path = find_file(tool, table)
    options = csv.ConvertOptions(null_values=_NULL_VALUES, strings_can_be_null=True)
    try:
        return csv.read_csv(BytesIO(_content(path, table)), convert_options=options)
    except (pa.ArrowInvalid, zipfile.BadZipFile, zlib.error) as error:
        raise DataCollectionException(f"{path}: {error}", error_code="DATA_ERROR", path=str(path)) from error


def _content(path: Path, table: FileTable) -> bytes:
    if path.suffix != ".zip":
        return path.read_bytes()
    with _archive(path) as archive:
        return archive.read(_member(archive, path, table))


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataCollectionException(f"{path}: {error}", error_code="DATA_ERROR", path=str(path)) from error


def _member(archive: zipfile.ZipFile, path: Path, table: FileTable) -> str:
    names = [name for name in archive.namelist() if fnmatch.fnmatch(name, table.member or "*.csv")]
    if len(names) != 1:
        raise _configuration_error(
            f"{path}: {table.member or '*.csv'} matches {len(names)} files in the archive: "
            f"set member to one of {', '.join(archive.namelist())}"
        )
    return names[0]


def _window_column(rows: pa.Table, table: FileTable) -> pa.ChunkedArray | pa.Array:
    """Return the window of each row: `2013-01` for the columns year and month."""
    missing = [name for name in table.partition if name not in rows.column_names]
    if missing:
        columns = ", ".join(rows.column_names)
        raise _configuration_error(f"{table.file} has no column {missing[0]}: the columns are {columns}")
    if not table.partition:
        return pa.repeat(SINGLE_WINDOW, rows.num_rows)
    parts = [pc.fill_null(pc.utf8_lpad(pc.cast(rows[name], pa.string()), 2, "0"), "null") for name in table.partition]
    return pc.binary_join_element_wise(*parts, "-")


def _configuration_error(message: str) -> DataCollectionException:
    return DataCollectionException(message, error_code="CONFIGURATION_ERROR")


# --- REST ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A UTC day, which is a window of a REST tool."""

    name: str

    @property
    def start(self) -> datetime:
        """The first moment of the day."""
        return datetime.fromisoformat(self.name).replace(tzinfo=UTC)

    @property
    def end(self) -> datetime:
        """The last moment of the day."""
        return self.start + timedelta(days=1, microseconds=-1)

    def is_over(self, now: datetime) -> bool:
        """Return whether the day ended more than an hour ago, so that no late object can be added to it."""
        return now - self.end > timedelta(hours=1)


def days_until(now: datetime, back: int) -> list[Day]:
    """Return the day of `now` and the `back` days before it, oldest first."""
    today = now.astimezone(UTC).date()
    return [Day(name=(today - timedelta(days=ago)).isoformat()) for ago in range(back, -1, -1)]


@dataclass(frozen=True, kw_only=True)
class Api:
    """Reads objects from a REST API that a tool describes. The owner of `client` closes it."""

    tool: RestTool
    client: httpx.Client
    on_page: Callable[[int, str], None] = field(default=lambda count, resource: None)
    """Called after each page with the number of objects so far and the name of the resource."""

    def objects(self, name: str, day: Day, known_parents: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
        """Return the objects of a resource that belong to `day`, each once.

        A `for_each` resource is requested only for parents that are not in `known_parents`.

        Raises:
            DataCollectionException: NETWORK_ERROR, API_ERROR, RATE_LIMITED or DATA_ERROR.
        """
        resource = self.tool.resources[name]
        if resource.for_each is None:
            rows = list(self._pages(name, resource, day))
        else:
            parent = self.tool.resources[resource.for_each]
            ids = [str(row[parent.key]) for row in self.objects(resource.for_each, day)]
            rows = [
                row | {"parent_id": parent_id}
                for parent_id in ids
                if parent_id not in known_parents
                for row in self._request(resource, day, paging={}, parent_id=parent_id)
            ]
        # An object that is created between two requests moves one that was already read to the next page.
        return list({_key_of(row, resource): row for row in rows}.values())

    def _pages(self, name: str, resource: RestResource, day: Day) -> Iterator[dict[str, Any]]:
        for page in range(self.tool.pages):
            offset = page * self.tool.page_size
            rows = self._request(resource, day, paging={"limit": self.tool.page_size, "offset": offset})
            yield from rows
            self.on_page(offset + len(rows), name)
            if len(rows) < self.tool.page_size:
                return
        raise DataCollectionException(
            f"{name} of {day.name} has more than pages={self.tool.pages} pages of {self.tool.page_size}: "
            "raise pages or page_size",
            error_code="CONFIGURATION_ERROR",
        )

    def _request(
        self, resource: RestResource, day: Day, *, paging: dict[str, int], parent_id: str = ""
    ) -> list[dict[str, Any]]:
        values = {"since": day.start.isoformat(), "until": day.end.isoformat(), "id": parent_id}
        url = (self.tool.url or "").rstrip("/") + _fill(resource.path, values)
        params = _fill(resource.params, values)
        body = None
        if resource.method == "POST":
            body = _fill(resource.body, values) | paging
        else:
            params = params | paging
        try:
            response = self.client.request(resource.method, url, params=params, json=body)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise _http_failure(url, error) from None  # It says all that httpx does, and hides the credential.
        except httpx.InvalidURL as error:
            raise _configuration_error(f"{url}: {error}") from None
        return _parse_rows(response)


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Convert objects to rows; nested values become JSON text."""
    flat = [{name: _scalar(value) for name, value in row.items()} for row in rows]
    names = sorted({name for row in flat for name in row})
    try:
        return pa.table({name: pa.array([row.get(name) for row in flat]) for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataCollectionException(f"one field holds values of several types: {error}", "DATA_ERROR") from error


def _scalar(value: Any) -> Any:
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list) else value


def _key_of(row: dict[str, Any], resource: RestResource) -> str:
    if resource.key not in row:
        raise DataCollectionException(
            redacted(f"{resource.path}: an object has no {resource.key!r}: {row}"), error_code="DATA_ERROR"
        )
    return str(row[resource.key])


def _fill(template: Any, values: dict[str, str]) -> Any:
    """Replace `{since}`, `{until}` and `{id}` in the template; other braces stay."""
    if isinstance(template, dict):
        return {name: _fill(value, values) for name, value in template.items()}
    if isinstance(template, list):
        return [_fill(value, values) for value in template]
    if isinstance(template, str):
        for name, value in values.items():
            template = template.replace(f"{{{name}}}", value)
    return template


def _parse_rows(response: httpx.Response) -> list[dict[str, Any]]:
    url = response.request.url
    try:
        rows = response.json()
    except ValueError as error:
        raise DataCollectionException(f"{url} sent broken JSON: {error}", error_code="DATA_ERROR") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        # Redacted as a whole first: the end of a text that is cut off could hold half a secret.
        raise DataCollectionException(
            f"{url} did not send a list of objects: {redacted(response.text)[:200]}", error_code="DATA_ERROR"
        )
    return rows


def _http_failure(url: str, error: httpx.HTTPError) -> DataCollectionException:
    if not isinstance(error, httpx.HTTPStatusError):
        message = redacted(f"{url}: {error or type(error).__name__}")
        return DataCollectionException(message, error_code="NETWORK_ERROR")
    status = error.response.status_code
    code = "RATE_LIMITED" if status == 429 else "CONFIGURATION_ERROR" if status in (401, 403, 404) else "API_ERROR"
    reason = redacted(error.response.reason_phrase)
    failure = DataCollectionException(f"{url} answered {status} {reason}", error_code=code)
    retry_after = _parse_retry_after(error.response.headers.get("Retry-After"), datetime.now(UTC))
    if retry_after is not None:
        failure.context["retry_after"] = retry_after
    return failure


def _parse_retry_after(header: str | None, now: datetime) -> float | None:
    """Return a Retry-After header in seconds (RFC 9110, 10.2.3: seconds or a date); None if missing or invalid."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError):
        return None
