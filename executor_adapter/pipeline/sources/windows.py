"""Windows: the parts of a table that are collected, processed and kept apart from one another."""

from __future__ import annotations

from dataclasses import dataclass

SINGLE_WINDOW = "all"
"""The name of the only window of a table that is not divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Names one part of a table, and its bounds where the source is asked for that part alone."""

    name: str = SINGLE_WINDOW
    since: str | None = None
    """The first value of the column by which the source is asked, as text (a moment in ISO 8601, or a number); rows
    with this value belong to the window. None: from the beginning."""
    until: str | None = None
    """The first value after the window. None: up to now."""
