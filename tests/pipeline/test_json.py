"""JSON is read as text: numbers as they are written, nested values as JSON; bad lines are rejected by themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from executor_adapter.pipeline.sources import unpacking
from tests.pipeline.reading import failure, read

OBJECT = (
    b'{"id": 12345678901234567890123456789012, "p": 1.50, "n": NaN, "t": "x", "b": true, "z": null, "e": "", '
    b'"o": {"a": [1.0, "\xc3\xa9"]}}'
)
ROW = {
    "id": "12345678901234567890123456789012",
    "p": "1.50",
    "n": "NaN",
    "t": "x",
    "b": "true",
    "z": None,
    "e": "",
    "o": '{"a": [1.0, "é"]}',
}


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".ndjson", OBJECT + b"\n\n" + OBJECT),
        (".jsonl", b"\xef\xbb\xbf" + OBJECT + b"\r\n" + OBJECT + b"\n"),
        (".json", b" [ " + OBJECT + b" ,\n" + OBJECT + b"] \n"),
        (".json", b"\xef\xbb\xbf[" + OBJECT + b"," + OBJECT + b"]"),
    ],
)
def test_values_stay_as_they_are_written(tmp_path: Path, suffix: str, content: bytes) -> None:
    """Long integers, trailing zeros and NaN stay, nested values are JSON, null is null, an empty text is a text."""
    assert read(tmp_path, content, suffix) == ([ROW, ROW], [])


def test_records_are_found_in_an_envelope(tmp_path: Path) -> None:
    """`records` leads to the list; without it, or with a wrong one, there is none."""
    content = b'{"meta": {"total": 1}, "data": {"items": [{"a": 1}]}, "links": []}'
    assert read(tmp_path, content, ".json", records="data.items")[0] == [{"a": "1"}]
    for records in (None, "data.rows"):
        error = failure(tmp_path, content, ".json", records=records)
        assert error.error_code == "CONFIGURATION_ERROR"
        assert str(error).endswith(f"has no list of objects at records={records!r}: correct records")


def test_each_bad_line_is_rejected_by_itself(tmp_path: Path) -> None:
    """Lines that are no object, not JSON, not UTF-8, too deep, or have a key twice are rejects with their number."""
    deep = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    lines = [
        b'{"a": 1}',
        b"[1]",
        b"{oops",
        b'{"a": "\xff"}',
        deep,
        b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}',
        b'{"a": 2}',
    ]
    rows, rejects = read(tmp_path, b"\n".join(lines), ".ndjson")
    assert rows == [{"a": "1"}, {"a": "2"}]
    assert [(line, reason.partition(":")[0]) for line, reason, _ in rejects] == [
        (2, "is not an object with keys"),
        (3, "is not JSON"),
        (4, "has bytes that are not UTF-8"),
        (5, "is nested too deeply"),
        (6, "is not JSON"),
        (7, "is not JSON"),
    ]
    assert "the key 'a' is in one object twice" in rejects[4][1]


def test_a_line_that_is_too_long_is_one_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much longer it is, it is one line, and those after it are read."""
    monkeypatch.setattr("executor_adapter.pipeline.sources.json_rows.MAX_DOCUMENT", 10)
    lines = [b'{"a": 1}', b'{"a": %s}' % (b"1" * 50), b'{"a": 2}', b'{"a": 333}', b'{"a": 4444}', b'{"a": 3}']
    rows, rejects = read(tmp_path, b"\n".join(lines), ".ndjson")
    assert rows == [{"a": "1"}, {"a": "2"}, {"a": "333"}, {"a": "3"}]
    assert [line for line, *_ in rejects] == [2, 5]


@pytest.mark.parametrize("content", [b"[]", b" [ \n ] ", b'{"rows": []}'])
def test_a_list_may_be_empty(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list without an element has no rows, however the reads divide it."""
    monkeypatch.setattr("executor_adapter.pipeline.sources.json_rows.CHUNK", 2)
    assert read(tmp_path, content, ".json", records="rows" if b"rows" in content else None) == ([], [])


def test_an_element_that_is_no_object_is_a_reject(tmp_path: Path) -> None:
    """In a list the place of the element is its line."""
    assert read(tmp_path, b'[{"a": 1}, 5, null]', ".json") == (
        [{"a": "1"}],
        [(2, "is not an object with keys", "5"), (3, "is not an object with keys", "null")],
    )


@pytest.mark.parametrize(
    "content",
    [
        b'[{"a": 1}',
        b'[{"a": 1},',
        b'[{"a": 1} {"a": 2}]',
        b'[{"a": 1},]',
        b'[{"a": 1}] x',
        b"[,]",
        b"[1 2]",
        b'[{"a": "\xff"}]',
        b'[{"a": 1, "a": 2}]',
        b'[{"a": "\\uD800"}]',
        b"[" * 100_000,
        b"<html>",
        b"",
    ],
)
def test_a_broken_document_is_a_data_error(tmp_path: Path, content: bytes) -> None:
    """A JSON document is right as a whole or not at all, and is not read again."""
    assert failure(tmp_path, content, ".json").error_code == "DATA_ERROR"


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.dictionaries(
            st.text("ab", min_size=1), min_size=1, values=st.text(st.characters(exclude_categories=("Cs",)))
        )
    ),
    indent=st.sampled_from([None, 1]),
    chunk=st.integers(1, 50),
)
def test_a_list_is_read_in_any_pieces(
    tmp_path: Path, rows: list[dict[str, Any]], indent: int | None, chunk: int
) -> None:
    """However the reads divide a list, its elements are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("executor_adapter.pipeline.sources.json_rows.CHUNK", chunk)
        found, rejects = read(tmp_path, json.dumps(rows, indent=indent).encode(), ".json")
    names = dict.fromkeys(name for row in rows for name in row)
    assert (found, rejects) == ([{name: row.get(name) for name in names} for row in rows], [])


def test_a_number_that_is_cut_by_a_read_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A number may lie across two reads."""
    assert unpacking.CHUNK > 1
    monkeypatch.setattr("executor_adapter.pipeline.sources.json_rows.CHUNK", 3)
    assert read(tmp_path, b"[12345]", ".json")[1] == [(1, "is not an object with keys", "12345")]
