"""CSV is read as the text that it is; what is not a row is rejected by itself, with its line and the reason."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline.reading import failure, read


def test_text_stays_text(tmp_path: Path) -> None:
    """Leading zeros, long numbers, NA, spaces and quoted empty texts stay; only an empty value is null."""
    content = b'zip,id,code,note\n00501,12345678901234567890,NA, x \n1,2,,""\n'
    assert read(tmp_path, content) == (
        [
            {"zip": "00501", "id": "12345678901234567890", "code": "NA", "note": " x "},
            {"zip": "1", "id": "2", "code": None, "note": ""},
        ],
        [],
    )


def test_nulls_can_be_named(tmp_path: Path) -> None:
    """The texts in `nulls` are null, unless they are quoted; so is an empty value, whatever `nulls` has."""
    assert read(tmp_path, b'a,b\nNA,\n"NA",-\n', nulls=["NA", "-"])[0] == [
        {"a": None, "b": None},
        {"a": "NA", "b": None},
    ]


def test_each_bad_line_is_rejected_by_itself(tmp_path: Path) -> None:
    """Ragged lines, bytes that are not UTF-8 and broken quotes are rejects with their line in the file."""
    content = b'a,b\n1,"x\ny"\n2\n3,4,5\n6,\xff\n7,"q"r\n8,ok\n'
    rows, rejects = read(tmp_path, content, delimiter=",", quote='"')
    assert rows == [{"a": "1", "b": "x\ny"}, {"a": "8", "b": "ok"}]
    assert rejects == [
        (4, "has fewer values than there are columns", "2"),
        (5, "has more values than there are columns", "3,4,5"),
        (6, "has bytes that are not UTF-8: set encoding", "6,?"),
        (7, "has a quote that is not closed, or text after one", '7,"q"r'),
    ]


def test_texts_of_several_lines_may_follow_one_another(tmp_path: Path) -> None:
    """One may begin in the line in which another one ends: the row begins where the first one does."""
    content = b'a,b\n"1\n2","3\n4"\n5\n'
    assert read(tmp_path, content) == (
        [{"a": "1\n2", "b": "3\n4"}],
        [(5, "has fewer values than there are columns", "5")],
    )


ROWS = [b"%d,x" % number for number in range(3_000)]


@pytest.mark.parametrize("at", [0, 1_500, 2_998])
@pytest.mark.parametrize("open_line", [b'7,"open', b'"open,7', b'7,"open ""twice""'])
def test_a_quote_that_does_not_close_swallows_no_line(tmp_path: Path, at: int, open_line: bytes) -> None:
    """At the first line, in the middle, before the end: the file fails, with the line in which the quote opens."""
    content = b"\n".join([b"a,b", *ROWS[:at], open_line, *ROWS[at:], b""])
    error = failure(tmp_path, content)
    assert error.error_code == "DATA_ERROR"
    assert f"of 3,002 lines are in no row: the quote in line {at + 2} opens and does not close" in str(error)
    rows, rejects = read(tmp_path / "without", content, quote="")
    assert len(rows) + len(rejects) == 3_001


def test_lines_inside_values_and_empty_lines_add_up(tmp_path: Path) -> None:
    """Line ends and empty lines inside quotes, also of a line that is a reject, and empty lines between rows."""
    content = b'a,b\n1,"x\n\n\ny"\n\n2,z\n\n\n3,"p\nq",4\n5,"6\n"\n'
    rows, rejects = read(tmp_path, content)
    assert [row["b"] for row in rows] == ["x\n\n\ny", "z", "6\n"]
    assert [line for line, *_ in rejects] == [10]
    assert [row["a"] for row in read(tmp_path / "one", b"a\n1\n\n2\n")[0]] == ["1", None, "2"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_is_read(tmp_path: Path, end: str) -> None:
    """Lines may end in any of the three ways, with or without one at the end of the file."""
    for content in (f"a,b{end}1,2{end}3,4{end}", f"a,b{end}1,2{end}3,4"):
        assert read(tmp_path, content.encode()) == ([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], [])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_inside_quotes_have_lines_of_their_own(tmp_path: Path, end: str) -> None:
    """However lines end: empty lines in quotes and between rows are no loss, and a reject has the line it begins in."""
    content = end.join(['"a', 'b",c', '1,"x', "", 'y"', "", "2", '"q"r,3', "4,5", ""])
    rows, rejects = read(tmp_path, content.encode())
    assert [list(row.values()) for row in rows] == [["1", f"x{end}{end}y"], ["4", "5"]]
    assert [line for line, *_ in rejects] == [7, 8]


def test_a_header_with_another_line_end_swallows_no_line(tmp_path: Path) -> None:
    r"""Where the only \n is inside of quotes, it does not make one line of all that follows the header."""
    error = failure(tmp_path, b'"a\nz",b\r1,2\r3,4\r')
    assert error.error_code == "DATA_ERROR"


def test_line_ends_of_two_kinds_are_read(tmp_path: Path) -> None:
    """Where lines end in both ways the rows are right, and line ends inside quotes stay as they are."""
    assert read(tmp_path, b'a,b\r\n1,"x\r\ny"\n2,z\r\n3,"p\nq"\n')[0] == [
        {"a": "1", "b": "x\r\ny"},
        {"a": "2", "b": "z"},
        {"a": "3", "b": "p\nq"},
    ]


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("a,b\né,ß\n".encode(), None),
        ("\ufeffa,b\né,ß\n".encode(), None),
        ("a,b\né,ß\n".encode("utf-16"), None),
        ("a,b\né,ß\n".encode("latin-1"), "latin-1"),
        ("a,b\né,ß\n".encode("cp1252"), "windows-1252"),
    ],
)
def test_encodings_are_read(tmp_path: Path, content: bytes, encoding: str | None) -> None:
    """UTF-8, what a byte order mark says, and any encoding that is set."""
    assert read(tmp_path, content, encoding=encoding) == ([{"a": "é", "b": "ß"}], [])


def test_an_unknown_encoding_is_a_configuration_error(tmp_path: Path) -> None:
    """An encoding that does not exist is named, with an example."""
    error = failure(tmp_path, b"a\n1\n", encoding="latin1000")
    assert error.error_code == "CONFIGURATION_ERROR"
    assert str(error) == "encoding: 'latin1000' is not an encoding: write for example latin-1"


def test_bytes_outside_of_a_set_encoding_reject_their_line(tmp_path: Path) -> None:
    """A byte that the encoding does not have rejects its line alone."""
    rows, rejects = read(tmp_path, b"a,b\n1,x\n2,\x81\n", encoding="cp1252")
    assert (rows, [line for line, *_ in rejects]) == ([{"a": "1", "b": "x"}], [3])


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_the_delimiter_is_not_guessed(tmp_path: Path, delimiter: str) -> None:
    """It is a comma, in a .tsv file a tab, or what is set."""
    content = f"a{delimiter}b\n1{delimiter}2\n".encode()
    assert read(tmp_path, content)[0] == [{f"a{delimiter}b": f"1{delimiter}2"}]
    assert read(tmp_path, content, delimiter=delimiter)[0] == [{"a": "1", "b": "2"}]


def test_a_first_line_that_may_be_data_is_not_guessed(tmp_path: Path) -> None:
    """Without a clear header the error says what to set; set, each way is taken."""
    error = failure(tmp_path, b"1,2\n3,4\n")
    assert error.error_code == "CONFIGURATION_ERROR"
    assert "the first line may be data: set header to true, or to false with the names in columns" in str(error)
    assert read(tmp_path, b"1,2\n3,4\n", header=True)[0] == [{"1": "3", "2": "4"}]
    assert read(tmp_path, b"1,2\n3,4\n", columns=["a", "b"])[0] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert "the column 'a' is there twice" in str(failure(tmp_path, b"1,2\n3,4\n", columns=["a", "a"]))


def test_names_are_taken_as_they_are(tmp_path: Path) -> None:
    """Names that differ in case alone, hold quotes or line ends, or are missing, make columns of their own."""
    rows, _ = read(tmp_path, b'a,A,"it\'s\nb",\n1,2,3,4\n', delimiter=",", quote='"', header=True)
    assert rows == [{"a": "1", "A": "2", "it's\nb": "3", "column4": "4"}]


def test_an_empty_file_is_a_data_error_and_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    """A file without a header is broken; one without rows is not."""
    assert failure(tmp_path, b"").error_code == "DATA_ERROR"
    assert read(tmp_path, b"a,b\n") == ([], [])


CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\x00"), min_size=1, max_size=8)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=20), delimiter=st.sampled_from(",;\t|"))
def test_what_csv_writes_is_read_again(tmp_path: Path, table: list[tuple[str, str]], delimiter: str) -> None:
    """Any text that Python's csv module writes is read as it was, row by row."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerows([("first", "second"), *table])
    rows, rejects = read(tmp_path, text.getvalue().encode(), delimiter=delimiter, quote='"', header=True)
    assert (rows, rejects) == ([{"first": a, "second": b} for a, b in table], [])


LINES = st.lists(st.sampled_from([b"1,2", b"1", b"1,2,3", b"\xff,2", b'"x"y,2', b'"a,b",2']), max_size=40)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES)
def test_no_line_is_lost(tmp_path: Path, lines: list[bytes]) -> None:
    """Every line is a row or a reject with its own number, whatever the others are."""
    rows, rejects = read(tmp_path, b"\n".join([b"a,b", *lines, b""]), delimiter=",", quote='"', header=True)
    good = [number for number, line in enumerate(lines, 2) if line in (b"1,2", b'"a,b",2')]
    assert len(rows) == len(good)
    assert [line for line, *_ in rejects] == [number for number in range(2, len(lines) + 2) if number not in good]


@pytest.mark.parametrize("header", ["x" * 9 + ",y" * 500, ",".join(f'"x{n}\n"' for n in range(300))])
def test_a_header_is_as_bounded_as_other_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    """A header that is too long fails the file."""
    monkeypatch.setattr("executor_adapter.pipeline.sources.csv_rows.MAX_LINE", 999)
    error = failure(tmp_path, f"{header}\n1,2\n".encode())
    assert error.error_code == "DATA_ERROR"
    assert re.search("there: (the row in )?line 1 is longer than 999 bytes: correct the file", str(error))


def test_a_quote_inside_a_value_is_a_character(tmp_path: Path) -> None:
    """It opens nothing, also where lines end in two ways, and values have some in quotes."""
    content = b'a,b\r\n1,5" pipe\n2,"x\r\ny"\r\n3,z\n'
    assert read(tmp_path, content) == (
        [{"a": "1", "b": '5" pipe'}, {"a": "2", "b": "x\r\ny"}, {"a": "3", "b": "z"}],
        [],
    )
