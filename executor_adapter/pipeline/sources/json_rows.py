"""Reads JSON as text: numbers stay as they are written, nested values become JSON text, NaN is the text NaN.

A line of NDJSON that is not an object is rejected by itself. A JSON document is right as a whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa

from executor_adapter.config import Format, redacted
from executor_adapter.pipeline.errors import configuration_error, data_error
from executor_adapter.pipeline.sources.unpacking import CHUNK, as_utf8
from executor_adapter.pipeline.text_rows import MAX_REJECT_TEXT, OnRejects, Reject, rejects_batch

MAX_DOCUMENT = 64 << 20
"""Bytes of a JSON document that is not a list: it is read as a whole. Lists and NDJSON may be of any size."""
BATCH_OBJECTS = 10_000
"""Objects of a batch, at most."""

NOT_A_ROW = "is not an object with keys"

Object = dict[str, Any]
Row = dict[str, str | None]
_SPACE = re.compile(r"[ \t\r\n]*")


class Number(str):
    """A number as it is written in JSON: 20 digits, 1.50 and NaN stay what they are."""


def _object(pairs: list[tuple[str, Any]]) -> Object:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is in one object twice")
    return found


DECODER = json.JSONDecoder(
    parse_int=Number, parse_float=Number, parse_constant=Number, object_pairs_hook=_object, strict=False
)
"""Reads JSON with its numbers as text; a key that is in one object twice is an error."""


def parse(text: str) -> Any:
    """Return the value of a JSON text, with its numbers as `Number`.

    Raises:
        ValueError: it is not JSON, has a key twice, or has text that no encoding can hold.
        RecursionError: it is nested too deeply.
    """
    return _checked(DECODER.decode(text), text)


def read_ndjson(path: Path, name: str, format: Format, on_rejects: OnRejects) -> Iterator[pa.RecordBatch]:
    """Yield the objects of a file with one JSON object a line; `name` is what rejects call it."""
    absent = _absent(format)
    with as_utf8(path, format.encoding) as (text, _), text.open("rb") as file:
        rejects: list[Reject] = []
        lines = enumerate(file, 1)
        while some := list(islice(lines, BATCH_OBJECTS)):
            rows = [row for line in some if (row := _row_of_line(*line, absent, rejects)) is not None]
            if rows:
                yield _batch(rows)
            if rejects:
                on_rejects(rejects_batch(name, rejects))
                rejects.clear()


def read_json(path: Path, name: str, format: Format, on_rejects: OnRejects) -> Iterator[pa.RecordBatch]:
    """Yield the objects of a JSON document: a list of objects, or one inside it at `format.records`.

    The line of a reject is its place in the list, counted from 1.

    Raises:
        DataCollectionException: DATA_ERROR, it is not JSON; CONFIGURATION_ERROR, the list is somewhere else.
    """
    absent = _absent(format)
    with as_utf8(path, format.encoding) as (text, _), text.open(encoding="utf-8-sig", newline="") as file:
        try:
            elements = enumerate(_elements(file, format, name), 1)
            while some := list(islice(elements, BATCH_OBJECTS)):
                rows = [_row(each, absent) for _, each in some if _has_keys(each)]
                rejects = [
                    Reject(place, NOT_A_ROW, to_text(each)[:MAX_REJECT_TEXT])
                    for place, each in some
                    if not _has_keys(each)
                ]
                if rows:
                    yield _batch(rows)
                if rejects:
                    on_rejects(rejects_batch(name, rejects))
        except (ValueError, RecursionError) as error:
            raise data_error(f"{name} is not JSON that can be read: {error}") from error


def count_json(path: Path, name: str, format: Format) -> tuple[int, Any]:
    """Return the number of elements that `read_json` finds, and the document around them; None where it is the list.

    Raises:
        DataCollectionException: as `read_json`.
    """
    with as_utf8(path, format.encoding) as (text, _), text.open(encoding="utf-8-sig", newline="") as file:
        try:
            start = file.read(CHUNK)
            if format.records is None and start.lstrip(" \t\r\n").startswith("["):
                file.seek(0)
                return sum(1 for _ in _elements(file, format, name)), None
            document = _whole(file, start)
            return len(records_in(document, format, name)), document
        except (ValueError, RecursionError) as error:
            raise data_error(f"{name} is not JSON that can be read: {error}") from error


def records_in(document: Any, format: Format, name: str) -> list[Any]:
    """Return the list in a parsed document: itself, or what is at `format.records`, where one object is a list of one.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, there is no list; the message says where there are some.
    """
    found = document
    for key in (format.records or "").strip(".").split("."):
        if key:
            found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, list):
        return found
    if isinstance(found, dict) and format.records is not None:
        return [found]
    lists = [key for key, value in document.items() if isinstance(value, list)] if isinstance(document, dict) else []
    where = f"it has lists at {', '.join(lists)}" if lists else "it begins with " + redacted(to_text(document))[:100]
    said = f"at records={format.records!r}" if format.records else "at its top: set records"
    raise configuration_error(f"{name} has no list of objects {said}: {where}")


def to_text(value: Any) -> str:
    """Return a parsed value as JSON, with its numbers as they were written."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join([f"{json.dumps(name)}: {to_text(each)}" for name, each in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([to_text(each) for each in value]) + "]"
    return json.dumps(value, ensure_ascii=False)


def _absent(format: Format) -> frozenset[str]:
    # An empty text in JSON is a value, unlike one in CSV.
    return frozenset(format.nulls) - {""}


def _has_keys(found: Any) -> bool:
    return isinstance(found, dict) and bool(found)


def _row(found: Object, absent: frozenset[str]) -> Row:
    return {name: _cell(value, absent) for name, value in found.items()}


def _cell(value: Any, absent: frozenset[str]) -> str | None:
    if value is None or isinstance(value, str):
        return None if value in absent else value
    return to_text(value)


def _batch(rows: list[Row]) -> pa.RecordBatch:
    """Return rows as text columns; a key that an object lacks is null in its row."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.RecordBatch.from_arrays(
        [pa.array([row.get(name) for row in rows], pa.string()) for name in names], names=names
    )


def _row_of_line(number: int, line: bytes, absent: frozenset[str], rejects: list[Reject]) -> Row | None:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        if not text:
            return None
        if _has_keys(found := parse(text)):
            return _row(found, absent)
        reason = NOT_A_ROW
    except UnicodeDecodeError:
        reason = "has bytes that are not UTF-8: set encoding"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:
        reason = f"is not JSON: {error}"
    rejects.append(Reject(number, reason, line.decode("utf-8", "replace").rstrip("\r\n")[:MAX_REJECT_TEXT]))
    return None


def _elements(file: TextIO, format: Format, name: str) -> Iterator[Any]:
    """Yield the elements of a JSON list; one that is the whole document needs little more memory than an element."""
    text = file.read(CHUNK)
    position = _after_space(text, 0)
    if format.records is not None or text[position : position + 1] != "[":
        yield from records_in(_whole(file, text), format, name)
        return
    yield from _streamed(_Remaining(file, text, position + 1))


def _whole(file: TextIO, start: str) -> Any:
    text = start + file.read(MAX_DOCUMENT + 1 - len(start))
    if len(text) > MAX_DOCUMENT:
        raise ValueError(f"it has more than {MAX_DOCUMENT:,} characters: only a list or NDJSON may")
    return parse(text)


def _streamed(remaining: _Remaining) -> Iterator[Any]:
    """Yield the elements of the list that has begun."""
    mark = remaining.peek()
    while mark != "]":
        yield remaining.take_element()
        mark = remaining.peek()
        if mark not in {",", "]"}:
            raise ValueError(f"a comma is missing before {mark!r}" if mark else "it ends in the middle")
        remaining.position += mark == ","
    remaining.position += 1
    if after := remaining.peek():
        raise ValueError(f"there is {after!r} after the list")


class _Remaining:
    """Holds what is still to be read of a JSON text, a little at a time."""

    def __init__(self, file: TextIO, text: str, position: int) -> None:
        self._file, self._text = file, text
        self.position = position

    def peek(self) -> str:
        """Return the next character that is no space, or "" at the end."""
        while (position := _after_space(self._text, self.position)) == len(self._text):
            self._text, self.position = self._file.read(CHUNK), 0
            if not self._text:
                return ""
        self.position = position
        return self._text[position]

    def take_element(self) -> Any:
        """Return the next element, and read as much more as it needs."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self.position)
            except ValueError:
                if len(self._text) - self.position > MAX_DOCUMENT or not self._read(size):
                    raise
            else:
                # A number that ends with the text may go on.
                if end < len(self._text) or not self._read(size):
                    self.position, start = end, self.position
                    return _checked(value, self._text[start:end])
            size *= 2

    def _read(self, size: int) -> bool:
        more = self._file.read(size)
        if more:
            self._text, self.position = self._text[self.position :] + more, 0
        return bool(more)


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return position if found is None else found.end()


def _checked(value: Any, text: str) -> Any:
    """Return the value; half a character, which JSON can write as an escape and UTF-8 cannot hold, is an error."""
    if "\\ud" in text or "\\uD" in text:
        to_text(value).encode()
    return value
