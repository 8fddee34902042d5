"""Tests of the facts of an error, above all of the text of its traceback."""

from __future__ import annotations

import pytest

from executor_adapter.exceptions import (
    DataCollectionException,
    JobCancelledError,
    JobTimeoutError,
    WorkerCrashedError,
)
from executor_adapter.exceptions.display import message_of, repr_of
from executor_adapter.worker.facts import MAX_TRACEBACK, read_facts


def raised(call: object) -> BaseException:
    try:
        assert callable(call)
        call()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def look_up() -> None:
    {}["nope"]


def look_up_for_another() -> None:
    try:
        look_up()
    except KeyError as error:
        raise ValueError("no such thing") from error


class NamelessError(DataCollectionException):
    def __repr__(self) -> str:
        return "no rows"


class FailingError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class OddText(str):
    __slots__ = ()

    def __str__(self) -> str:
        return self


class OddTextsError(Exception):
    error_code = OddText("ODD")
    retry_after = True

    def __str__(self) -> str:
        return OddText("odd")


def test_a_traceback_ends_with_class_and_text() -> None:
    """A traceback shows the lines of the function, and ends as Python's does."""
    error = raised(look_up)
    text = read_facts(error).traceback
    assert text is not None
    assert text.startswith("Traceback (most recent call last):\n")
    assert '{}["nope"]' in text
    assert text.endswith("\nKeyError: 'nope'")
    assert message_of(error) == "KeyError: 'nope'"


def test_what_is_shown_of_an_error_names_its_class() -> None:
    """The message and the repr of a user's exception name its class, whatever it is derived from and its repr is."""
    error = NamelessError("page 13 is empty")
    assert message_of(error) == repr_of(error) == "NamelessError: page 13 is empty"
    assert message_of(DataCollectionException("page 13 is empty")) == "page 13 is empty"


def test_the_cause_is_shown_too() -> None:
    """The error that another one was raised from comes first."""
    error = raised(look_up_for_another)
    text = read_facts(error).traceback
    assert text is not None
    assert text.index("KeyError: 'nope'") < text.index("direct cause of the following exception")
    assert text.endswith("\nValueError: no such thing")


def test_a_long_traceback_loses_its_beginning() -> None:
    """Of a long text the end is kept, which shows where it failed."""
    error = ValueError("x" * 100 + "y" * MAX_TRACEBACK)
    text = read_facts(error).traceback
    assert text is not None
    assert text.startswith("... (112 characters)\nyyy")
    assert len(text) < MAX_TRACEBACK + 50


def test_an_error_without_text_has_its_class_alone() -> None:
    """Where the text is empty, or the code that makes it fails, the class is shown."""
    assert read_facts(ValueError()).traceback == "ValueError"
    assert (read_facts(FailingError()).traceback or "").endswith("FailingError: <exception str() failed>")


def test_facts_are_plain_data() -> None:
    """A code and a text of a class of their own are made plain: no process needs that class to read them."""
    found = read_facts(OddTextsError())
    assert [type(part) for part in (found.code, found.text, found.retry_after)] == [str, str, float]
    assert found.kinds[1:] == ("builtins.Exception", "builtins.BaseException")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (WorkerCrashedError("died", output_tail="Segmentation fault\n"), "The end of its output:\nSegmentation fault"),
        (WorkerCrashedError("died"), None),
        (JobTimeoutError("ran longer than max_runtime=1 s"), None),
        (JobCancelledError("job a was cancelled"), None),
    ],
)
def test_an_end_from_outside_has_no_frames_of_the_program(error: BaseException, text: str | None) -> None:
    """A crash has the end of its output, and a limit or a cancel nothing of the executor's own code."""
    assert read_facts(error).traceback == text


def test_sentences_of_the_package_stand_alone() -> None:
    """The text of an error of this package is a sentence, and is shown without its class."""
    assert message_of(JobTimeoutError("ran longer than max_runtime=1 s")) == "ran longer than max_runtime=1 s"
    assert message_of(ValueError()) == "ValueError"
