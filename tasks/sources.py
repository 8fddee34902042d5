"""Where rows come from: CSV files and REST APIs. Plain functions; each error carries the code that says what to do.

CONFIGURATION_ERROR (not there: a retry would not find it), DATA_ERROR (broken: a retry would find it so again),
NETWORK_ERROR, API_ERROR and RATE_LIMITED (may pass: retried).
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

from executor_adapter.config.settings import FilesTool, FileTable, RestResource, RestTool
from executor_adapter.exceptions import DataCollectionException

WHOLE = "all"
"""The window of a table that is not partitioned."""

_NOT_THERE = ["", "NA"]


# --- files ---


def locate(tool: FilesTool, table: FileTable) -> Path:
    """The file of a table; the package is found without importing it.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, the package or the file is not there.
    """
    path = _base(tool) / table.file
    if not path.is_file():
        raise _misconfigured(f"{path}: no such file: correct tables.*.file, or put it there")
    return path


def _base(tool: FilesTool) -> Path:
    if tool.directory is not None:
        return tool.directory
    spec = importlib.util.find_spec(tool.package or "")
    if spec is None or not spec.submodule_search_locations:
        raise _misconfigured(f"package {tool.package} is not installed: pip install {tool.package}")
    return Path(spec.submodule_search_locations[0])


def fingerprint(tool: FilesTool, table: FileTable) -> str:
    """What tells this content of the file from any other: its size and CRC-32, of the member where it is a ZIP.

    The time of the last change is left out: an installation anew changes it and not the content.
    """
    path = locate(tool, table)
    if path.suffix == ".zip":
        with _archive(path) as archive:
            info = archive.getinfo(_member(archive, path, table))
        return f"{path.name}/{info.filename} {info.file_size} bytes crc32 {info.CRC:08x}"
    content = path.read_bytes()
    return f"{path.name} {len(content)} bytes crc32 {zlib.crc32(content):08x}"


def windows_of(tool: FilesTool, table: FileTable) -> dict[str, int]:
    """The windows that the file holds, with their rows; `table.windows` picks some of them.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, a picked window is not in the file; or as `read_file` does.
    """
    counted = pc.value_counts(_window_column(read_file(tool, table), table))
    found = {item["values"]: item["counts"] for item in counted.to_pylist()}
    for window in table.windows or ():
        if window not in found:
            raise _misconfigured(f"window {window!r} is not in {table.file}: it holds {', '.join(sorted(found))}")
    return {name: found[name] for name in sorted(found) if table.windows is None or name in table.windows}


def read_window(tool: FilesTool, table: FileTable, window: str) -> pa.Table:
    """The rows of one window, as they are in the file; "NA" and nothing are null."""
    rows = read_file(tool, table)
    return rows.filter(pc.equal(_window_column(rows, table), window))


def read_file(tool: FilesTool, table: FileTable) -> pa.Table:
    """All rows of the table's file, each column of the narrowest type that all its values fit.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, it is not there; DATA_ERROR, it is no CSV or a broken ZIP.
    """
    path = locate(tool, table)
    options = csv.ConvertOptions(null_values=_NOT_THERE, strings_can_be_null=True)
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
        raise _misconfigured(
            f"{path}: {table.member or '*.csv'} fits {len(names)} of its files: "
            f"let member name one of {', '.join(archive.namelist())}"
        )
    return names[0]


def _window_column(rows: pa.Table, table: FileTable) -> pa.ChunkedArray | pa.Array:
    """The window that each row belongs to: `2013-01` for the columns year and month."""
    missing = [name for name in table.partition if name not in rows.column_names]
    if missing:
        raise _misconfigured(f"{table.file} has no column {missing[0]}: it has {', '.join(rows.column_names)}")
    if not table.partition:
        return pa.repeat(WHOLE, rows.num_rows)
    parts = [pc.fill_null(pc.utf8_lpad(pc.cast(rows[name], pa.string()), 2, "0"), "null") for name in table.partition]
    return pc.binary_join_element_wise(*parts, "-")


def _misconfigured(message: str) -> DataCollectionException:
    return DataCollectionException(message, error_code="CONFIGURATION_ERROR")


# --- REST ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A window of a REST tool: a UTC day."""

    name: str

    @property
    def first(self) -> datetime:
        return datetime.fromisoformat(self.name).replace(tzinfo=UTC)

    @property
    def last(self) -> datetime:
        return self.first + timedelta(days=1, microseconds=-1)

    def is_over(self, now: datetime) -> bool:
        """Whether it is so long over that no late object belongs to it."""
        return now - self.last > timedelta(hours=1)


def days_until(now: datetime, back: int) -> list[Day]:
    """The day of `now` and `back` days before it, oldest first."""
    today = now.astimezone(UTC).date()
    return [Day(name=(today - timedelta(days=ago)).isoformat()) for ago in range(back, -1, -1)]


@dataclass(frozen=True, kw_only=True)
class Api:
    """A REST API as one tool describes it; `client` is asked, and closed by its owner."""

    tool: RestTool
    client: httpx.Client
    said: Callable[[int, str], None] = field(default=lambda count, resource: None)
    """Told after each answer how many objects there are by now."""

    def objects(self, name: str, day: Day, known: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
        """The objects of a resource that belong to `day`, each once. Those of a `for_each` resource whose parent is
        in `known` are not asked for.

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
                row | {"parent_id": key} for key in ids if key not in known for row in self._of_one(resource, day, key)
            ]
        # An object that came in between two pages pushes one already seen to the next page.
        return list({_key_of(row, resource): row for row in rows}.values())

    def _pages(self, name: str, resource: RestResource, day: Day) -> Iterator[dict[str, Any]]:
        for page in range(self.tool.pages):
            offset = page * self.tool.page_size
            rows = self._ask(resource, day, paging={"limit": self.tool.page_size, "offset": offset})
            yield from rows
            self.said(offset + len(rows), name)
            if len(rows) < self.tool.page_size:
                return
        raise DataCollectionException(
            f"{name} of {day.name} has more than pages={self.tool.pages} pages of {self.tool.page_size}: "
            "raise pages or page_size",
            error_code="CONFIGURATION_ERROR",
        )

    def _of_one(self, resource: RestResource, day: Day, key: str) -> list[dict[str, Any]]:
        return self._ask(resource, day, paging={}, key=key)

    def _ask(self, resource: RestResource, day: Day, *, paging: dict[str, int], key: str = "") -> list[dict[str, Any]]:
        values = {"since": day.first.isoformat(), "until": day.last.isoformat(), "id": key}
        url = (self.tool.url or "").rstrip("/") + _filled(resource.path, values)
        params = _filled(resource.params, values)
        body = None
        if resource.method == "POST":
            body = _filled(resource.body, values) | paging
        else:
            params = params | paging
        try:
            response = self.client.request(resource.method, url, params=params, json=body)
            response.raise_for_status()
        except httpx.HTTPError as error:
            raise _unreachable(url, error) from error
        except httpx.InvalidURL as error:
            raise _misconfigured(f"{url}: {error}") from error
        return _rows_of(response)


def client_for(tool: RestTool, headers: dict[str, str] | None = None) -> httpx.Client:
    """A client with the tool's headers over `headers`, for `Api`; connections are kept between requests."""
    return httpx.Client(headers={**(headers or {}), **tool.headers}, timeout=tool.timeout, follow_redirects=True)


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    """The objects as rows; what is nested in them as JSON text."""
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
        raise DataCollectionException(f"{resource.path}: an object has no {resource.key!r}: {row}", "DATA_ERROR")
    return str(row[resource.key])


def _filled(template: Any, values: dict[str, str]) -> Any:
    """The template with `{since}`, `{until}` and `{id}` replaced, and other braces left as they are."""
    if isinstance(template, dict):
        return {name: _filled(value, values) for name, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, values) for value in template]
    if isinstance(template, str):
        for name, value in values.items():
            template = template.replace(f"{{{name}}}", value)
    return template


def _rows_of(response: httpx.Response) -> list[dict[str, Any]]:
    url = response.request.url
    try:
        rows = response.json()
    except ValueError as error:
        raise DataCollectionException(f"{url} sent broken JSON: {error}", error_code="DATA_ERROR") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataCollectionException(f"{url} sent no list of objects: {response.text[:200]}", error_code="DATA_ERROR")
    return rows


def _unreachable(url: str, error: httpx.HTTPError) -> DataCollectionException:
    if not isinstance(error, httpx.HTTPStatusError):
        return DataCollectionException(f"{url}: {error or type(error).__name__}", error_code="NETWORK_ERROR")
    status = error.response.status_code
    code = "RATE_LIMITED" if status == 429 else "CONFIGURATION_ERROR" if status in (401, 403, 404) else "API_ERROR"
    failure = DataCollectionException(f"{url} answered {status} {error.response.reason_phrase}", error_code=code)
    retry_after = _seconds(error.response.headers.get("Retry-After"), datetime.now(UTC))
    if retry_after is not None:
        failure.context["retry_after"] = retry_after
    return failure


def _seconds(retry_after: str | None, now: datetime) -> float | None:
    """A Retry-After header in seconds (RFC 9110, 10.2.3: seconds or a date); None where it says nothing."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - now).total_seconds())
    except (ValueError, TypeError):
        return None
