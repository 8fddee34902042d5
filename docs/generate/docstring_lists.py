"""A griffe extension: in a docstring, lines that begin with a name and a colon become a list, one item a name.

`max_workers`: attempts at once.            - `max_workers`: attempts at once.
`max_pending`: jobs that may wait.     ->   - `max_pending`: jobs that may wait.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_NAMED = re.compile(r"^`\w+`(?:, `\w+`)*: ")


class DocstringLists(griffe.Extension):
    """Changes docstrings as they are collected; the sources stay as they are."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = "\n\n".join(map(_as_list, obj.docstring.value.split("\n\n")))


def _as_list(paragraph: str) -> str:
    lines = paragraph.split("\n")
    named = [number for number, line in enumerate(lines) if _NAMED.match(line)]
    if not named:
        return paragraph
    items = [f"- {line}" if number in named else line for number, line in enumerate(lines)]
    items.insert(named[0], "")
    return "\n".join(items).lstrip("\n")
