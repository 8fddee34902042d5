"""Reads JSON as text: numbers stay as they are written, nested values become JSON text, NaN is the text NaN.

A line of NDJSON that is not an object is rejected by itself. A JSON document is right as a whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow as pa

from executor_adapter.config import Format
from executor_adapter.pipeline.errors import configuration_error, data_error
from executor_adapter.pipeline.sources.unpacking import CHUNK, as_utf8
from executor_adapter.pipeline.text_rows import MAX_REJECT_TEXT, OnRejects, Reject, batch_of, rejects_batch

MAX_DOCUMENT = 64 << 20
"""Bytes of what is read as a whole: a JSON document that is not a list, a line of NDJSON, which is rejected if it is
longer, or a value in a list. Lists and NDJSON may be of any size."""
BATCH_OBJECTS = 10_000
"""Objects of a batch, at most."""

NOT_A_ROW = "is not an object with keys"

Object = dict[str, Any]
Row = dict[str, str | None]
_SPACES = " \t\r\n"
_SPACE = re.compile(f"[{_SPACES}]*")


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
    with as_utf8(path, format.encoding) as (text, _), text.open("rb") as file:
        lines = enumerate(_lines(file), 1)
        yield from _batches(name, (_row_of_line(*line, format.nulls) for line in lines), on_rejects)


def read_json(path: Path, name: str, format: Format, on_rejects: OnRejects) -> Iterator[pa.RecordBatch]:
    """Yield the objects of a JSON document: a list of objects, or one inside it at `format.records`.

    The line of a reject is its place in the list, counted from 1.

    Raises:
        DataCollectionException: DATA_ERROR, it is not JSON; CONFIGURATION_ERROR, the list is somewhere else.
    """
    with _opened(path, name, format) as (elements, _):
        yield from _batches(name, (_row(*each, format.nulls) for each in enumerate(elements, 1)), on_rejects)


def count_json(path: Path, name: str, format: Format) -> tuple[int, Any]:
    """Return the number of elements that `read_json` finds, and the document around them; None where it is the list.

    Raises:
        DataCollectionException: as `read_json`.
    """
    with _opened(path, name, format) as (elements, document):
        return sum(1 for _ in elements), document


@contextmanager
def _opened(path: Path, name: str, format: Format) -> Iterator[tuple[Iterable[Any], Any]]:
    """Yield what `count_json` counts; a list that is the whole document needs little more memory than an element."""
    with as_utf8(path, format.encoding) as (text, _), text.open(encoding="utf-8-sig", newline="") as file:
        try:
            start = file.read(CHUNK)
            if format.records is None and start.lstrip(_SPACES).startswith("["):
                yield _elements(file, start), None
                return
            start += file.read(MAX_DOCUMENT + 1 - len(start))
            if len(start) > MAX_DOCUMENT:
                raise ValueError(f"it has more than {MAX_DOCUMENT:,} characters: only a list or NDJSON may")
            document = parse(start)
            yield records_in(document, format, name), document
        except (ValueError, RecursionError) as error:
            raise data_error(f"{name} is not JSON that can be read: {error}") from error


def records_in(document: Any, format: Format, name: str) -> list[Any]:
    """Return the list in a parsed document: itself, or what is at `format.records`, where one object is a list of one.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, there is no list.
    """
    found = document
    for key in (format.records or "").strip(".").split("."):
        if key:
            found = found.get(key) if isinstance(found, dict) else None
    if isinstance(found, list):
        return found
    if isinstance(found, dict) and format.records is not None:
        return [found]
    raise configuration_error(f"{name} has no list of objects at records={format.records!r}: correct records")


def to_text(value: Any) -> str:
    """Return a parsed value as JSON, with its numbers as they were written."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join([f"{json.dumps(name)}: {to_text(each)}" for name, each in value.items()]) + "}"
    if isinstance(value, list):
        return "[" + ", ".join([to_text(each) for each in value]) + "]"
    return json.dumps(value, ensure_ascii=False)


def _batches(name: str, found: Iterator[Row | Reject | None], on_rejects: OnRejects) -> Iterator[pa.RecordBatch]:
    """Yield rows as text columns, and pass on rejects; a key that an object lacks is null in its row."""
    while some := list(islice(found, BATCH_OBJECTS)):
        if rows := [each for each in some if isinstance(each, dict)]:
            yield batch_of(rows, partial(pa.array, type=pa.string()), name)
        if rejects := [each for each in some if isinstance(each, Reject)]:
            on_rejects(rejects_batch(name, rejects))


def _row(number: int, found: Any, absent: Sequence[str]) -> Row | Reject:
    if isinstance(found, dict) and found:
        return {name: _cell(value, absent) for name, value in found.items()}
    return Reject(number, NOT_A_ROW, to_text(found)[:MAX_REJECT_TEXT])


def _cell(value: Any, absent: Sequence[str]) -> str | None:
    if value is None or isinstance(value, str):
        return None if value and value in absent else value  # An empty text in JSON is a value, unlike one in CSV.
    return to_text(value)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines; of a longer one `MAX_DOCUMENT` bytes and one more, by which it is known."""
    is_cut = False
    while line := file.readline(MAX_DOCUMENT + 1):
        if not is_cut:
            yield line
        is_cut = len(line) > MAX_DOCUMENT and not line.endswith(b"\n")


def _row_of_line(number: int, line: bytes, absent: Sequence[str]) -> Row | Reject | None:
    reason = f"is longer than {MAX_DOCUMENT:,} bytes"
    try:
        if len(line.rstrip(b"\r\n")) <= MAX_DOCUMENT:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                return None
            if isinstance(row := _row(number, parse(text), absent), dict):
                return row
            reason = NOT_A_ROW
    except UnicodeDecodeError:
        reason = "has bytes that are not UTF-8: set encoding"
    except RecursionError:
        reason = "is nested too deeply"
    except ValueError as error:
        # Without the place, so that the lines with the same mistake are counted together.
        reason = f"is not JSON: {getattr(error, 'msg', None) or getattr(error, 'reason', error)}"
    return Reject(number, reason, line.decode("utf-8", "replace").rstrip("\r\n")[:MAX_REJECT_TEXT])


def _elements(file: TextIO, text: str) -> Iterator[Any]:
    """Yield the elements of the list that begins in `text`, and read as much more of the file as each needs."""
    position, mark = text.index("[") + 1, "["
    while mark != "]":
        start = _after_space(text, position)
        try:
            if mark == "[" and text.startswith("]", start):
                position, mark = start + 1, "]"
                continue
            value, end = DECODER.raw_decode(text, start)
            # What comes after it is read too: a number that ends with the text may go on.
            mark, position = text[_after_space(text, end)], _after_space(text, end) + 1
        except (ValueError, IndexError) as error:
            part = text[start:]
            if len(part) > MAX_DOCUMENT or not (more := file.read(max(CHUNK, len(part)))):
                raise ValueError("it ends in the middle" if isinstance(error, IndexError) else error) from None
            text, position = part + more, 0
            continue
        if mark not in ",]":
            raise ValueError(f"a comma is missing before {mark!r}")
        yield _checked(value, text[start:end])
    while not (after := text[position:].strip(_SPACES)) and (text := file.read(CHUNK)):
        position = 0
    if after:
        raise ValueError(f"there is {after[0]!r} after the list")


def _after_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return position if found is None else found.end()


def _checked(value: Any, text: str) -> Any:
    """Return the value; half a character, which JSON can write as an escape and UTF-8 cannot hold, is an error."""
    if "\\ud" in text or "\\uD" in text:
        to_text(value).encode()
    return value
