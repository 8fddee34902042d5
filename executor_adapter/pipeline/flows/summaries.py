"""What a tool's tables hold, in sentences and a picture, as a function of the tool's owner says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.disk import writing
from executor_adapter.pipeline.importing import import_object
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.tables import ConfiguredTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the function that a tool names as its `summary` returns; it is called with the tables by name."""

    lines: Sequence[str] = ()
    """Sentences for the report."""
    png: bytes | None = None
    """A picture for the report."""
    title: str = "the picture"
    """What the picture shows."""


def summarise_tables(tool: str, tables: Sequence[ConfiguredTable], reference: str) -> dict[str, Any]:
    """Return what the function `reference` says of the tables of a tool; the body of a job.

    Returns:
        `lines`; `title` and `png`: the path of the picture, or None.

    Raises:
        ConfigurationError: the function cannot be imported, or returns something else.
    """
    found = import_object(reference, "summary")({table.name: table for table in tables})
    if not isinstance(found, Summary):
        raise ConfigurationError(f"summary: {reference} returned {type(found).__name__}: return a Summary")
    for line in found.lines:
        log("%s", line)
    path = None
    if found.png is not None:
        path = tables[0].lake / "reports" / tool / "summary.png"
        with writing(path) as file:
            file.write(found.png)
    return {"lines": list(found.lines), "title": found.title, "png": None if path is None else str(path)}
