"""The tests keep the rules of the test suite."""

from __future__ import annotations

from tests import conftest, docstrings


def test_every_test_has_a_docstring() -> None:
    """Each test states its behaviour in a docstring."""
    missing = [line for file in docstrings.test_files() for line in docstrings.tests_without_docstring(file)]
    assert missing == []


def test_the_longest_test_files_exist() -> None:
    """The files that are started first are named as they are."""
    assert [name for name in conftest.LONGEST if not (docstrings.TESTS / name).is_file()] == []
