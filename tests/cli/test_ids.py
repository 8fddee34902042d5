"""Jobs that are found by a part of their id."""

from __future__ import annotations

import pytest

from executor_adapter.cli import output, stores
from executor_adapter.job import JobStatus
from executor_adapter.store import JobStore
from tests.cli.conftest import Command, fill, record


def test_a_job_is_found_by_part_of_its_id_however_many_others_have_that_elsewhere(
    command: Command, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part of an id finds its job although the same text is in other columns of many jobs."""
    monkeypatch.setattr(stores, "FIRST_PAGE", 20)
    elsewhere = [record(f"job-{n:02}", age=60, error_message="needle") for n in range(50)]
    fill(store, record("needle-in-1", age=90), *elsewhere)
    assert command("jobs", "show", "needle", "--json").json["job_id"] == "needle-in-1"


def test_the_ends_of_ids_that_are_shown_differ() -> None:
    """Ids that are cut are still different; short ones are whole."""
    assert output.ends_of([f"{number:020}" for number in (1, 1, 2)]) == ["…00000001", "…00000001", "…00000002"]
    assert output.ends_of([f"{letter}0123456789" for letter in "ab"] * 2) == ["a0123456789", "b0123456789"] * 2
    assert output.ends_of(["x" * 15 + f"{letter}0123456789" for letter in "ab"]) == ["…a0123456789", "…b0123456789"]
    assert output.ends_of(["short", "123456789"]) == ["short", "123456789"]


def test_where_there_is_no_room_each_cell_is_a_line(
    command: Command, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a very narrow screen id, status, function and error are below one another; none is cut, and no word broken."""
    monkeypatch.setattr(output, "PIPE_WIDTH", 30)
    error = {"error_code": "DATA_ERROR", "error_message": "row 17 of flights.csv has no date"}
    fill(store, record("0123-4567-89ab", JobStatus.FAILED, **error))
    listed = command("jobs", "list").out.splitlines()
    assert [line.rstrip() for line in listed[:5]] == [
        "…567-89ab",
        "  failed",
        "  collect",
        "  DATA_ERROR: row 17 of",
        "flights.csv has no date",
    ]


@pytest.mark.parametrize("part", ["a%b", "a_b", "%", "_"])
def test_what_sql_would_take_for_any_letter_stands_for_itself(command: Command, store: JobStore, part: str) -> None:
    """The wildcards of SQL are ordinary letters in a part of an id."""
    fill(store, record("a%b"), record("a_b"), record("axb"))
    assert part in command("jobs", "show", part, "--json").json["job_id"]


def test_an_id_that_is_no_text_is_refused(command: Command, store: JobStore) -> None:
    """An id that is not valid Unicode is refused in one line."""
    fill(store, record("one"))
    result = command("jobs", "show", "\udcff")  # Python decodes a byte that is not UTF-8 like this.
    assert (result.code, result.err) == (
        2,
        "executor-adapter: a store cannot hold the text '\\udcff': give valid Unicode\n",
    )
