"""Tests of the traceback text that a store keeps."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from executor_adapter import Job
from executor_adapter.exceptions import (
    DataCollectionException,
    JobCancelledError,
    JobTimeoutError,
    WorkerCrashedError,
)
from executor_adapter.exceptions.display import message_of, repr_of
from executor_adapter.pools.in_process.call import bind
from executor_adapter.worker.tracebacks import MAX_TRACEBACK, traceback_of


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


class HangingError(Exception):
    def __str__(self) -> str:
        raise AssertionError("its code runs")


def test_a_traceback_ends_with_class_and_text() -> None:
    """A traceback shows the lines of the function, and ends as Python's does."""
    error = raised(look_up)
    text = traceback_of(error, error.__traceback__)
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
    text = traceback_of(error, error.__traceback__)
    assert text is not None
    assert text.index("KeyError: 'nope'") < text.index("The error above led to this one:")
    assert text.endswith("\nValueError: no such thing")


def test_a_long_traceback_loses_its_beginning() -> None:
    """Of a long text the end is kept, which shows where it failed."""
    error = ValueError("x" * 100 + "y" * MAX_TRACEBACK)
    text = traceback_of(error, None)
    assert text is not None
    assert text.startswith("... (112 characters)\nyyy")
    assert len(text) < MAX_TRACEBACK + 50


def test_the_error_s_own_code_does_not_run() -> None:
    """Text that only the error's own code could give is left out: it may never return, and the store would wait."""
    assert traceback_of(HangingError(), None) == "HangingError"
    assert traceback_of(ValueError(HangingError()), None) == "ValueError"


def test_frames_through_which_an_error_came_are_left_out() -> None:
    """Who asks a future adds frames of the standard library and of this package, which say nothing of the function."""
    future: Future[None] = Future()
    future.set_exception(raised(look_up))
    error = raised(lambda: bind(Job(function=future.result))())
    text = traceback_of(error, error.__traceback__)
    assert text is not None
    assert "concurrent" not in text
    assert "in look_up" in text


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
    assert traceback_of(error, None) == text


def test_sentences_of_the_package_stand_alone() -> None:
    """The text of an error of this package is a sentence, and is shown without its class."""
    assert message_of(JobTimeoutError("ran longer than max_runtime=1 s")) == "ran longer than max_runtime=1 s"
    assert message_of(ValueError()) == "ValueError"
