"""Files as they must not be: each physical line is a row or a reject with its line, or the file fails with a reason."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.reading import failure, read

LINES = 400
ROWS = [f"{number},x" for number in range(2, LINES + 1)]
OPEN, LONG, WIDE = "has a quote that is not closed", "is longer than 4,194,304 bytes", "has more values than there are"


def lines(*changes: tuple[int, str], header: str = "a,b", end: str = "\n") -> bytes:
    """Return a file of 400 lines, some of which are others; lines are counted from 1."""
    found = [header, *ROWS]
    for number, line in changes:
        found[number - 1] = line
    return (end.join(found) + end).encode()


@dataclass(frozen=True, slots=True)
class Case:
    """A file, and either its rejects, by line, or what its error says."""

    content: bytes
    rejects: Mapping[int, str] = field(default_factory=dict)
    error: str = ""
    suffix: str = ".csv"
    format: Mapping[str, Any] = field(default_factory=dict)
    merged: int = 0
    """Lines that are a part of the row before."""


CASES = {
    "a quote opens in line 1": Case(lines(header='a,"b'), error="line 1 opens and does not close"),
    "a quote opens in line 2": Case(lines((2, '2,"x')), error="line 2 opens and does not close"),
    "a quote opens in the middle": Case(lines((200, '200,"x')), error="line 200 opens and does not close"),
    "a quote opens in the last line but one": Case(lines((399, '399,"x')), error="line 399 opens and does not close"),
    "a quote opens in the last line": Case(lines((400, '400,"x')), {400: OPEN}),
    "two quotes open": Case(lines((100, '100,"x'), (300, '300,"y')), error="line 100 opens and does not close"),
    "a quoted value goes on": Case(lines((100, '100,"x'), (101, 'y"')), merged=1),
    "text after a quote": Case(lines((200, '200,"x"y')), {200: OPEN}),
    "a header twice, as names": Case(lines(header="a,a"), error="the column 'a' is there twice"),
    "a header twice, as lines": Case(lines((200, "a,b"))),
    "CR": Case(lines(end="\r")),
    "CRLF": Case(lines(end="\r\n")),
    "CRLF and LF": Case(lines((200, "200,x\r"))),
    "CR among LF": Case(lines((200, "200,x\r201,x")), error="is not CSV: line 200 has a carriage return in it"),
    "a line of 5 MB": Case(lines((200, "200," + "x" * (5 << 20))), error=f"line 200 {LONG}"),
    "a quoted line of 9 MB": Case(lines((200, '200,"' + "x" * (9 << 20) + '"')), error=f"line 200 {LONG}"),
    "a quoted row of 5 MB": Case(lines((200, '200,"' + "x\n" * (5 << 19) + '"')), error=f"the row in line 200 {LONG}"),
    "a header of 5 MB": Case(lines(header="a," + "b" * (5 << 20)), error=f"line 1 {LONG}"),
    "a byte order mark": Case(b"\xef\xbb\xbf" + lines()),
    "UTF-16": Case(lines().decode().encode("utf-16")),
    "UTF-16 without a mark": Case(lines().decode().encode("utf-16-le"), format={"encoding": "utf-16-le"}),
    "UTF-16 that is cut off": Case(lines().decode().encode("utf-16")[:-1], error="the text is not utf-16"),
    "latin-1 that is said": Case(lines((200, "200,é")).decode().encode("latin-1"), format={"encoding": "latin-1"}),
    "latin-1 that is not said": Case(
        lines((200, "200,é")).decode().encode("latin-1"), {200: "has bytes that are not UTF-8: set encoding"}
    ),
    "a lone surrogate": Case(
        lines((200, "200,?")).replace(b"?", b"\xed\xa0\x80"), {200: "has bytes that are not UTF-8: set encoding"}
    ),
    "a null byte": Case(lines((200, "200,\0"))),
    "too many values": Case(lines((200, "200,x,y")), {200: WIDE}),
    "gzip that is cut off": Case(gzip.compress(lines())[:-4], error="the archive is broken", suffix=".csv.gz"),
    "gzip of nothing": Case(gzip.compress(b""), error="is empty: it has no header", suffix=".csv.gz"),
    "a lone surrogate in JSON": Case(
        b'{"a": "1"}\n{"a": "\\ud800"}\n' * 2, {2: "surrogate", 4: "surrogate"}, suffix=".ndjson"
    ),
    "JSON with other keys in each line": Case(
        b"\n".join(b'{"k%d": 1}' % number for number in range(2001)), error="it has 2,001 columns", suffix=".ndjson"
    ),
    "JSON that is cut off": Case(b'{"a": "1"}\n{"a": "2"}\n{"a": ', {3: ""}, suffix=".ndjson"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_line_is_in_the_account(tmp_path: Path, case: Case) -> None:
    """Whatever a file is, none of its lines goes without a word."""
    if case.error:
        error = failure(tmp_path, case.content, case.suffix, **case.format)
        assert (error.error_code, case.error in str(error)) == ("DATA_ERROR", True), str(error)
        return
    rows, rejects = read(tmp_path, case.content, case.suffix, **case.format)
    assert [line for line, *_ in rejects] == list(case.rejects)
    assert all(said in reason for (_, reason, _), said in zip(rejects, case.rejects.values(), strict=True)), rejects
    physical = len(case.content.splitlines()) if case.suffix == ".ndjson" else LINES - 1
    assert len(rows) + len(rejects) + case.merged == physical


@pytest.mark.parametrize(("suffix", "start"), [(".csv", b"a,b\r\n1,2\n"), (".ndjson", b'{"a": "1"}\n')])
def test_an_endless_line_is_not_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, start: bytes
) -> None:
    """Of a line that does not end so much is read as shows that it is too long."""
    for name, limit in (("csv_rows.MAX_LINE", 1 << 20), ("json_rows.MAX_DOCUMENT", 1 << 20)):
        monkeypatch.setattr(f"executor_adapter.pipeline.sources.{name}", limit)
    content = start + b"x" * (64 << 20)
    tracemalloc.start()
    try:
        if suffix == ".csv":
            assert "line 3 is longer than 1,048,576 bytes: correct the file" in str(failure(tmp_path, content))
        else:
            rows, rejects = read(tmp_path, content, suffix)
            assert rows == [{"a": "1"}]
            assert [reject[:2] for reject in rejects] == [(2, "is longer than 1,048,576 bytes")]
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
