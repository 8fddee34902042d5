"""Checks that every test has a docstring.

    python -m tests.docstrings [FILE ...]    # without files: all tests

Prints each test without one as `file:line: name` and exits with 1 if there is any.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent


def test_files() -> list[Path]:
    """Return the files of all tests."""
    return sorted(TESTS.rglob("test_*.py"))


def tests_without_docstring(file: Path) -> Iterator[str]:
    """Yield `file:line: name` for each test function of the file that has no docstring."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and node.name.startswith("test_") and not ast.get_docstring(node):
            yield f"{file}:{node.lineno}: {node.name}"


def main(arguments: list[str]) -> int:
    """Check the files, or all tests; return the exit code."""
    files = [Path(argument) for argument in arguments] or test_files()
    found = [line for file in files for line in tests_without_docstring(file)]
    for line in found:
        print(f"{line}: add a docstring of one line that states the behaviour")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
