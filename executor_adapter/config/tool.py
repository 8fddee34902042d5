"""What all tools have: their limits, the defaults of their jobs, and where their secrets may be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl

from pydantic import Field
from pydantic_core import PydanticCustomError

from executor_adapter.config.credentials import Credential
from executor_adapter.config.secrets import SECRET, hidden
from executor_adapter.config.sections import JobSettings, Section
from executor_adapter.job import Count, Number, Seconds

KINDS = "'files', 'rest', 'sql' or 'function'"
"""What `source` may be."""


class Tool(Section):
    """Holds the limits of a tool and the defaults of its jobs; the jobs themselves are the user's own."""

    max_concurrent: Count | None = Field(default=None, ge=1)
    """Attempts of its jobs that run at the same time."""
    rate: Seconds | None = None
    """Attempts of its jobs that start in a second, on average."""
    burst: Count = Field(default=1, ge=1)
    """Attempts that may start at once after a pause."""
    buffer: Number | None = Field(default=None, ge=0, lt=1)
    """Share of the rate that is left unused; null: `collection.rate_limit_buffer`."""
    summary: str | None = Field(default=None, pattern=r"^[\w.]+:[\w.]+$")
    """`module:function` that says for the report, in sentences and a picture, what the tool's tables hold; null:
    nothing is said."""
    job: JobSettings = JobSettings()
    """Defaults of this tool's jobs; they win over the sections `collection`, `processing` and `job`."""

    def relative_to(self, directory: Path) -> Self:
        """Return the tool with relative paths, those of its credentials too, made relative to `directory`."""
        update: dict[str, Any] = {
            name: directory / value if isinstance(value, Path) else value.relative_to(directory)
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), Credential | Path)
        }
        for name in ("tables", "resources"):
            tables = getattr(self, name, {})
            update |= {name: {key: table.relative_to(directory) for key, table in tables.items()}} if tables else {}
        return self.model_copy(update=update)


def check_secrets(key: str, values: Mapping[str, Any], credential: Credential | None) -> None:
    """Refuse a secret among the values, and the place of one that is not described."""
    for name, value in values.items():
        has_place = isinstance(value, str) and "{credential}" in value
        if has_place and credential is None:
            raise refused([key, name], repr(value), f"must have the key credential beside {key}")
        if hidden(name, value) != value and not has_place:
            why = 'must be "{credential}", with or without text around it: say in `credential` where the secret is'
            raise refused([key, name], "(hidden)", why)


def check_url(path: list[str], url: str, way: str) -> None:
    """Refuse a URL with a password, or with another secret in its query. Of a strange one it refuses too much."""
    place, _, query = url.partition("?")
    # Of "authenticator" and the like the value is a method.
    names = (name for name, _ in parse_qsl(query) if "auth" not in name.lower())
    if hidden("url", place) != place or "@" in query or any(map(SECRET.search, names)):
        raise refused(path, "a URL with a password", way)


def refused(path: list[str], value: str, why: str) -> PydanticCustomError:
    return PydanticCustomError("together", "{why}", {"path": path, "value": value, "why": why})
