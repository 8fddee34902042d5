"""Prints to the terminal, and escapes there, and in Markdown, what it did not write itself.

What a job logs, raises or is called could otherwise rewrite the screen, run commands of the terminal, pass for a line
of the program's own, or fail to be encoded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_ESCAPED = (
    {code: chr(0x2400 + code) for code in range(0x20)}  # Control pictures: ␛ for ESC.
    | {0x7F: "\N{SYMBOL FOR DELETE}"}
    | dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")
    # Those that change the direction of writing make a line look like another one.
    | dict.fromkeys((0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\N{REPLACEMENT CHARACTER}")
    | {code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)}  # Unpaired surrogates.
)
_ESCAPED_IN_LINES = {code: shown for code, shown in _ESCAPED.items() if code not in (0x09, 0x0A)}
_MAY_NEED_IT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Return a text on one line that a terminal shows and does not obey."""
    return text.translate(_ESCAPED) if _MAY_NEED_IT.search(text) else text


def escaped_lines(text: str) -> str:
    """Return the same for a text of several lines: its line ends, as line feeds, and its tabs stay."""
    return text.replace("\r\n", "\n").translate(_ESCAPED_IN_LINES) if _MAY_NEED_IT.search(text) else text


_MARKUP = re.compile(r"[\\`*\[\]|~]|://|www\.", re.I)
"""What begins or ends markup, and what makes a link of a bare address."""


def markdown_cell(text: str) -> str:
    """Return the text as a cell of a Markdown table, in which nothing of it is markup.

    Otherwise `<class 'dict'>` would disappear as HTML, and a job's error could show images, which browsers load.
    """
    return _MARKUP.sub(_escaped_markup, escape(escaped(" ".join(text.split())), quote=False))


def _escaped_markup(markup: re.Match[str]) -> str:
    return "&#58;//" if markup[0] == "://" else f"{markup[0][:-1]}\\{markup[0][-1]}"


class SafeText(Text):
    """A text in which all that is put is escaped, so that it is measured as it is shown."""

    def __init__(self, text: str = "", style: str = "", **options: Any) -> None:
        super().__init__(escaped_lines(text), style, **options)

    def append(self, text: Text | str, style: Any = None) -> Self:
        """Add the text, escaped."""
        super().append(escaped_lines(text) if isinstance(text, str) else text, style)
        return self


class SafeConsole(Console):
    """Prints what it is given, escaped: a `str` on one line and without markup; a `SafeText` may have several lines."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text on one line; tables measure their cells by this too."""
        return super().render_str(escaped(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield the segments of the renderable, escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped_lines(segment.text), segment.style)

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError, as any other output does: rich would end the program, with a code of its own."""
        raise
