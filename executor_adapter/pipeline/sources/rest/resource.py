"""Lands one window of a resource: page by page, each checked before it counts, and continued after the last one."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from executor_adapter.config import Format, RestResource, RestTool, TableSettings, redacted
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import checksum_of, digest_of
from executor_adapter.pipeline.errors import configuration_error, data_error
from executor_adapter.pipeline.job_log import log, progress
from executor_adapter.pipeline.sources.landing import LandedFile, Landing, Receiver, Window, find_landing, receiving
from executor_adapter.pipeline.sources.reading import FORMATS, count_rows, read_rows
from executor_adapter.pipeline.sources.rest.client import ApiClient, shown
from executor_adapter.pipeline.sources.rest.pages import Answer, State, first_state, next_state, parameters
from executor_adapter.pipeline.sources.unpacking import bounded, unpacked
from executor_adapter.pipeline.tables import PARENT_ID, ConfiguredTable

_BY_CONTENT_TYPE = {"application/json": "json", "application/x-ndjson": "ndjson", "text/csv": "csv"}


def land_resource(table: ConfiguredTable, tool: RestTool, window: Window, *, is_over: bool = False) -> Landing:
    """Ask for all pages of a resource in a window, and return the landing that has them.

    Args:
        table: the table of the resource.
        tool: the API; its `url` is set. Its request rate is shared under its name.
        window: the window; its bounds fill `{since}`, `{until}` and `{last}`.
        is_over: whether the window does not change any more: a landing that is there is returned.

    Raises:
        DataCollectionException: see `error_codes` for what an API answers; DATA_ERROR, an answer is not what the
            resource says; CONFIGURATION_ERROR, the settings do not fit the API.
    """
    root, fingerprint, resource = table.lake, fingerprint_of(tool, table.name, window), tool.resources[table.name]
    if is_over and (known := find_landing(root, table.tool_name, table.name, window, fingerprint)):
        log("%s %s: is over, and not asked for again", table, window.name)
        return known
    ids: list[str | None] = [None] if resource.for_each is None else _parent_ids(table, tool, resource.for_each, window)
    with (
        closing(ApiClient(tool, root / "landing" / table.tool_name / "request-rate")) as client,
        receiving(root, table.tool_name, table.name, window, fingerprint=fingerprint) as receiver,
    ):
        _Download(tool, table.name, window, client, receiver).run(ids)
    landing = receiver.landing
    log("%s %s: %d pages, %d objects", table, window.name, len(landing.files), landing.rows)
    return landing


def fingerprint_of(tool: RestTool, table: str, window: Window) -> str:
    """Return what identifies the requests for a window: see `Manifest`."""
    resource = tool.resources[table]
    asked = {
        "url": tool.url,
        "resource": resource.model_dump(mode="json", exclude={*TableSettings.model_fields, "nulls"}),
        "paging": (resource.paging or tool.paging).model_dump(mode="json"),
        "page_size": tool.page_size,
        "window": [window.since, window.until],
    }
    return digest_of(asked)


def _parent_ids(table: ConfiguredTable, tool: RestTool, name: str, window: Window) -> list[str | None]:
    """Return the ids of the parents in the window, each once; the parents are landed where they are not yet."""
    parent, parents = tool.resources[name], replace(table, name=name)
    if not parents.is_dated:  # All of them may have objects in the window.
        window = Window(is_sample=window.is_sample)
    landing = find_landing(table.lake, table.tool_name, name, window, fingerprint_of(tool, name, window))
    landing = landing or land_resource(parents, tool, window)
    ids: dict[str | None, None] = {}
    key, without = parent.key[0], 0
    for batch in read_rows(landing, parent, lambda _: None):
        found = batch[key].to_pylist() if key in batch.schema.names else [None] * batch.num_rows
        ids.update(dict.fromkeys(each for each in found if each))
        without += sum(not each for each in found)
    if without:
        log("%s: %d objects have no %s, so nothing is asked for them", name, without, key)
    return list(ids)


class _Download:
    """Receives the pages of one landing."""

    def __init__(self, tool: RestTool, table: str, window: Window, client: ApiClient, receiver: Receiver) -> None:
        self._tool, self._table, self._window = tool, table, window
        self._resource = tool.resources[table]
        self._paging = self._resource.paging or tool.paging
        self._client, self._receiver = client, receiver

    def run(self, ids: list[str | None]) -> None:
        """Receive the pages of each id that an interrupted attempt has not; [None]: of the resource itself."""
        resumed = len(self._receiver.files)
        try:
            self._receive_all(ids)
        except DataCollectionException as error:
            if error.error_code != "REQUEST_ERROR" or not resumed or len(self._receiver.files) > resumed:
                raise
            log("%s: cannot continue after %d pages, and starts anew: %s", self._table, resumed, error)
            self._receiver.restart()
            self._receive_all(ids)

    def _receive_all(self, ids: list[str | None]) -> None:
        done = {file.details["id"]: file.details["next"] for file in self._receiver.files}
        for parent_id in ids[:1] if self._window.is_sample else ids:
            self._receive(parent_id, done.get(parent_id, first_state(self._paging)))

    def _receive(self, parent_id: str | None, state: State | None) -> None:
        pages = 0
        while state is not None and not (pages and self._window.is_sample):
            if pages >= self._tool.pages:
                raise configuration_error(
                    f"{self._table} {self._window.name} has more than pages={self._tool.pages} pages: raise pages, or "
                    "correct paging"
                )
            state = self._page(parent_id, state)
            pages += 1
            progress(sum(file.rows or 0 for file in self._receiver.files), None, "objects")

    def _page(self, parent_id: str | None, state: State) -> State | None:
        """Receive one page and return the state of the next one."""
        url = self._address(state, _values_of(self._window, parent_id))
        with self._client.answer(url) as response:
            format, origin, limit = _format_of(response, self._resource), shown(response.url), self._tool.max_bytes

            def inspect(path: Path) -> tuple[int, dict[str, Any]]:
                answer = _inspected(path, response, format, limit)
                following = next_state(self._paging, state, answer)
                self._refuse_circle(parent_id, answer, state, following)
                self._refuse_repeated(path, parent_id, answer)
                return answer.rows, {
                    "id": parent_id,
                    "columns": {} if parent_id is None else {PARENT_ID: parent_id},
                    "encoding": format.encoding,
                    "next": following,
                }

            content = bounded(response.iter_raw(), limit, f"{origin} sent", "raise max_bytes, or correct the URL")
            file = self._receiver.add(f".{format.format}", content, origin=origin, inspect=inspect)
        following: State | None = file.details["next"]
        return following

    def _address(self, state: State, values: dict[str, str | None]) -> httpx.URL:
        url = self._client.address(_fill_path(self._resource.path, values))
        if "url" in state:
            return self._client.next_address(url, state["url"])
        params: dict[str, Any] = {name: _filled(value, values) for name, value in self._resource.params.items()}
        return url.copy_merge_params(params | parameters(self._paging, state, self._tool.page_size))

    def _before(self, parent_id: str | None) -> list[LandedFile]:
        """Return the pages that were received already."""
        return [file for file in self._receiver.files if file.details["id"] == parent_id]

    def _refuse_circle(self, parent_id: str | None, answer: Answer, state: State, following: State | None) -> None:
        """Refuse what would go on for ever: a next page that was there before."""
        places = [state, *(file.details["next"] for file in self._before(parent_id))]
        place = {name: value for name, value in (following or {}).items() if name in {"cursor", "url"}}
        if place and any(place.items() <= (each or {}).items() for each in places):
            raise data_error(redacted(f"{answer.origin} names a next page that was there before: {place}"))

    def _refuse_repeated(self, path: Path, parent_id: str | None, answer: Answer) -> None:
        """Refuse the page before once more. New objects may have moved it here: the next run begins anew."""
        before = self._before(parent_id)[-1:] if answer.rows and self._paging.by in {"page", "offset"} else []
        if before and checksum_of(path) == before[0].checksum:
            said = f"sent the page before once more: the API may not know paging by {self._paging.by}"
            raise DataCollectionException(f"{answer.origin} {said}", error_code="REQUEST_ERROR")


def _format_of(response: httpx.Response, resource: RestResource) -> Format:
    """Return how the answer is read: as the resource says, else as the answer says it is."""
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    kind = (
        resource.format
        or _BY_CONTENT_TYPE.get(content_type)
        or ("json" if content_type.endswith("+json") else FORMATS.get(Path(response.url.path).suffix.lower()))
    )
    if content_type == "text/html" and kind != "csv":
        raise data_error(f"{shown(response.url)} sent a web page, and no data: check url, path and credential")
    packing = response.headers.get("content-encoding", "identity").lower()
    if packing not in {"identity", "gzip", "x-gzip"}:
        raise data_error(f"{shown(response.url)} sent {packing}, though gzip alone was asked for")
    if kind is None:
        raise configuration_error(
            f"{shown(response.url)} sent {content_type or 'something without a type'}: set format"
        )
    return resource.model_copy(update={"format": kind, "encoding": resource.encoding or response.charset_encoding})


def _inspected(path: Path, response: httpx.Response, format: Format, max_bytes: int) -> Answer:
    """Read the page as it will be read later, and return what it says of the paging."""
    origin = shown(response.url)
    try:
        with unpacked(path, max_bytes=max_bytes) as (plain, _):
            rows, document = count_rows(plain, origin, format)
    except DataCollectionException as error:
        says_length = {"content-length", "transfer-encoding"} & set(response.headers)
        if error.error_code != "DATA_ERROR" or says_length:
            raise
        said = f"{error}; it may be cut off, since the answer has no length"
        raise DataCollectionException(said, error_code="NETWORK_ERROR") from None
    link = response.links.get("next", {}).get("url")
    return Answer(origin=origin, rows=rows, document=document, link=link)


def _values_of(window: Window, parent_id: str | None) -> dict[str, str | None]:
    """Return what the names stand for; `last` is the last moment before `until`."""
    last = None
    with suppress(ValueError):  # It may have no end, or one that is not a moment.
        last = (datetime.fromisoformat(window.until or "") - timedelta(microseconds=1)).isoformat()
    return {"since": window.since, "until": window.until, "last": last, "id": parent_id}


def _fill_path(template: str, values: dict[str, str | None]) -> str:
    """Replace the names in the path of a URL; the values are quoted, so that none changes the path."""
    # A value of dots alone would lead to another folder, and quote leaves it as it is.
    quoted = {
        name: value if value is None else quote(value, safe="") if value.strip(".") else value.replace(".", "%2E")
        for name, value in values.items()
    }
    return _filled(template, quoted)


def _filled(template: str, values: dict[str, str | None]) -> str:
    """Replace the names in a template; other braces stay.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, a name stands for nothing in this window.
    """
    for name, value in values.items():
        if f"{{{name}}}" in template:
            if value is None:
                raise configuration_error(f"{template!r} asks for {{{name}}}, which this window does not have")
            template = template.replace(f"{{{name}}}", value)
    return template
