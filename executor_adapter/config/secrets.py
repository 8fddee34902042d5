"""Hides secrets in what is shown: values by the name of their key, passwords in URLs, credentials that were read."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

_NAMED_SECRET = (
    r"(?:header|token|secret|passw|pwd|credential|auth(?!or(?!i))|cookie|signature|(?:api|access|private|pickle).?key)"
)
SECRET = re.compile(_NAMED_SECRET + r"|\b(?:params|body)\.key$", re.I)
"""Keys whose values are not shown: `authorization` is one, `author` is not."""
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
BLOCK_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_PLACES = {"env": ENV_NAME, "file": r"^[^\r\n]+$", "secret_block": BLOCK_NAME}
"""The keys that say where a secret is, and what their values look like. Other values there may be the secret itself."""
_SECRET_IN_QUERY = re.compile(rf"([^=&?]*{_NAMED_SECRET}[^=&?]*|(?<=[?&])key)=[^&]*", re.I)
_PASSWORD = re.compile(r"^([^:]*://[^:]*|[^:]*(?!://)):.*@", re.S)
"""Matches up to the last @, because a password in a URL may hold special characters that are not escaped."""
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.I)


def hidden(key: str, value: Any) -> Any:
    """Return the value, with secrets replaced by "(hidden)"."""
    if value is None or _is_place(key, value):
        return value
    if SECRET.search(key):
        return "(hidden)"
    if isinstance(value, Mapping):
        return {name: hidden(f"{key}.{name}", part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(key, part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


def _is_place(key: str, value: Any) -> bool:
    """Return whether the value says where a credential is."""
    *before, last = key.split(".")
    return before[-1:] == ["credential"] and last in _PLACES and re.search(_PLACES[last], str(value)) is not None


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


_known: dict[str, None] = {}
"""The secrets that this process has read, the newest last."""
_lock = threading.Lock()
MAX_KNOWN = 1000
"""Secrets that are remembered: more are only read where each is new, such as a token that expires."""
MIN_LENGTH = 4
"""Characters of a secret that is hidden in texts. A shorter one would be found in many words."""


def remember(secret: str) -> None:
    """Hide this secret, and each of its lines, in what `redacted` returns from now on."""
    with _lock:
        for part in (secret, *secret.splitlines()):
            if len(part) >= MIN_LENGTH:
                _known.pop(part, None)
                _known[part] = None
        while len(_known) > MAX_KNOWN:
            del _known[next(iter(_known))]


def redacted(text: str) -> str:
    """Return a text without the credentials that this process has read: each is replaced by "(hidden)"."""
    with _lock:
        known = sorted(_known, key=len, reverse=True)
    for secret in known:
        text = text.replace(secret, "(hidden)")
    return text
