"""Hides secrets in what is shown: values by the name of their key, and passwords in URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NAMED_SECRET = (
    r"(?:header|token|secret|passw|pwd|credential|auth(?!or(?!i))|cookie|signature|(?:api|access|private|pickle).?key)"
)
SECRET = re.compile(_NAMED_SECRET + r"|\b(?:params|body)\.key$", re.I)
"""Keys whose values are not shown: `authorization` is one, `author` is not."""
_SECRET_IN_QUERY = re.compile(rf"([^=&?]*{_NAMED_SECRET}[^=&?]*|(?<=[?&])key)=[^&]*", re.I)
_PASSWORD = re.compile(r"^([^:]*://[^:]*|[^:]*(?!://)):.*@", re.S)
"""Matches up to the last @, because a password in a URL may hold special characters that are not escaped."""
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.I)


def hidden(key: str, value: Any) -> Any:
    """Return the value, with secrets replaced by "(hidden)"."""
    if value is None:
        return None
    if SECRET.search(key):
        return "(hidden)"
    if isinstance(value, Mapping):
        return {name: hidden(f"{key}.{name}", part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(key, part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """Return a URL without its password, and without values in its query that are named like secrets.

    Of a malformed URL it hides too much rather than too little.
    """
    place, _, query = text.partition("?")
    if "@" in query:  # It may end a password that contains a "?", or belong to the query.
        return f"{place.partition('://')[0]}://(hidden)" if "://" in place else "(hidden)"
    return _SECRET_IN_QUERY.sub(r"\1=(hidden)", _PASSWORD.sub(r"\1:(hidden)@", text))


def without_secrets_of_urls(text: str) -> str:
    """Return a text for people, with the secrets of each URL in it hidden."""
    return _URL.sub(lambda url: without_secrets(url[0]), text)
