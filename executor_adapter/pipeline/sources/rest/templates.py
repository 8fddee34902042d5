"""Fills `{since}`, `{until}`, `{last}` and `{id}` into the path, the parameters and the body of a request."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.sources.windows import Window


def values_of(window: Window, parent_id: str | None) -> dict[str, str | None]:
    """Return what the names stand for; `last` is the last moment before `until`."""
    try:
        last = None if window.until is None else datetime.fromisoformat(window.until) - timedelta(microseconds=1)
    except ValueError:
        last = None
    return {
        "since": window.since,
        "until": window.until,
        "last": None if last is None else last.isoformat(),
        "id": parent_id,
    }


def fill(template: Any, values: dict[str, str | None]) -> Any:
    """Replace the names in a template, at any depth; other braces stay.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, a name stands for nothing in this window.
    """
    if isinstance(template, dict):
        return {name: fill(value, values) for name, value in template.items()}
    if isinstance(template, list):
        return [fill(value, values) for value in template]
    if isinstance(template, str):
        return _filled(template, values)
    return template


def fill_path(template: str, values: dict[str, str | None]) -> str:
    """Replace the names in the path of a URL; the values are quoted, so that none changes the path."""
    # A value of dots alone would lead to another folder, and quote leaves it as it is.
    quoted = {
        name: value if value is None else quote(value, safe="") if value.strip(".") else value.replace(".", "%2E")
        for name, value in values.items()
    }
    return _filled(template, quoted)


def _filled(template: str, values: dict[str, str | None]) -> str:
    for name, value in values.items():
        if f"{{{name}}}" in template:
            if value is None:
                raise DataCollectionException(
                    f"{template!r} asks for {{{name}}}, which this window does not have",
                    error_code="CONFIGURATION_ERROR",
                )
            template = template.replace(f"{{{name}}}", value)
    return template
