"""Hides secrets in what is shown: values by the name of their key, passwords in URLs, credentials that were read."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

from executor_adapter.worker import facts

_SECRET_NAMES = (
    "header",
    "(?<!max.)token(?!i[sz]e|.?count)",  # Of a language model: `max_tokens`, `tokenizer`, `token_count`.
    "secret",
    "pass(?:w|phrase)",
    "pwd",
    "credential",
    "auth(?!or(?!i))",  # `authorization` is one, `author` is not.
    "cookie",
    "signature",
    "(?<![a-z])s(?:ig|as)(?![a-z])",  # Of Azure: the signature of a URL, and the part that has it.
    "(?:api|access|private|pickle|account).?key",
    "connection.?string",
    "odbc.?connect",
)
_NAMED_SECRET = f"(?:{'|'.join(_SECRET_NAMES)})"
SECRET = re.compile(_NAMED_SECRET + r"|\bparams\.key$", re.I)
"""Keys whose values are not shown."""
_IS_SECRET = re.compile(_NAMED_SECRET + r"|(?<=[?&])key(?==)", re.I)
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
BLOCK_NAME = r"^[a-z0-9]+(-[a-z0-9]+)*$"
_PLACES = {"env": ENV_NAME, "file": r"^[^\r\n]+$", "secret_block": BLOCK_NAME}
"""The keys that say where a secret is, and what their values look like. Other values there may be the secret itself."""
_PASSWORD = re.compile(r"^([^:]*://[^:]*|[^:]*(?!://)):.*@", re.S)
"""Matches up to the last @, because a password in a URL may hold special characters that are not escaped."""
# From here on a pattern takes whole names and schemes and gives nothing back (`++`): the time is linear in the text.
_SCHEME = r"(?<![a-z0-9+.-])[a-z0-9+.-]++://"
_URL = re.compile(
    # A password may hold spaces and quotes: it ends at the last @ of the line. What is a port begins no password, but
    # `123 45` in `u:123 45@h` is none.
    rf"""{_SCHEME}(?:[^\s:@/'"]*:(?!\d++(?!\ [^\s@/]*+@)(?:[^\d\w]|$))(?:(?!{_SCHEME})[^\n])*@)?[^\s'"<>]*""",
    re.I,
)
_NAME = re.compile(  # Before a colon and a bare value stands a whole name, and no class of errors such as `AuthError`.
    r"""(?ix)(?<![\w.-])[\w.-]++(?:\ (?:key|string|connect)\b)?+(?:["']?\s*+(?:=|:\s*+(?=["']))|
    (?:(?<=token)|(?<=secret)|(?<=word)|(?<=wd)|(?<=phrase)|(?<=ation)|(?<=key)|(?<=cookie)):[ \t]++)\s*+"""
)
_VALUE = re.compile(
    r"""(?isx)(?!\(hidden\))(?:\{(?:[^}]|\}\})*\}|\{[^}]*+|"(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?|
    (?<=cookie:[ \t])[^"'\n]++|(?:(?:Basic|Bearer|Digest|Token)\ +)?[^\s;&,'")\]}]+(?:\ [^;=:&,'"\n]*+(?=;))?)"""
)
"""The value after a name, as in `PWD={a b};` and `PWD=a b;` of ODBC, `Authorization: Bearer ...` of HTTP,
`AccountKey=...;` of Azure, and the `repr` of a dict.

A bracket or a quote that does not end, as in a text that was cut, hides the rest."""
_NAME_IN_QUERY = re.compile(r"(?<![^=&?])[^=&?]++=")
_VALUE_IN_QUERY = re.compile(r"[^&]*")


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
    return _without_values(_without_secrets(value), _NAME, _VALUE) if isinstance(value, str) else value


def _is_place(key: str, value: Any) -> bool:
    """Return whether the value says where a credential is."""
    *before, last = key.split(".")
    return before[-1:] == ["credential"] and last in _PLACES and re.search(_PLACES[last], str(value)) is not None


def _without_secrets(text: str) -> str:
    """Return a URL without its password, and without values in its query that are named like secrets.

    Of a malformed URL it hides too much rather than too little.
    """
    place, _, query = text.partition("?")
    if "@" in query:  # It may end a password that contains a "?", or belong to the query.
        return f"{place.partition('://')[0]}://(hidden)" if "://" in place else "(hidden)"
    return _without_values(_PASSWORD.sub(r"\1:(hidden)@", text), _NAME_IN_QUERY, _VALUE_IN_QUERY)


def _without_values(text: str, names: re.Pattern[str], values: re.Pattern[str]) -> str:
    """Return the text with "(hidden)" for each value that follows a name of a secret."""
    parts, shown = [], 0
    for name in names.finditer(text):
        is_secret = name.start() >= shown and _IS_SECRET.search(text, name.start(), name.end())
        if is_secret and (value := values.match(text, name.end())):
            parts += [text[shown : name.end()], "(hidden)"]
            shown = value.end()
    return "".join((*parts, text[shown:]))


_known: dict[str, None] = {}
"""The secrets that this process has read, the newest last."""
_lock = threading.Lock()
MAX_KNOWN = 1000
"""Secrets that are remembered: more are only read where each is new, such as a token that expires."""
MIN_LENGTH = 4
"""Characters of a secret that is hidden in texts. A shorter one would be found in many words."""


def remember(secret: str) -> None:
    """Hide this secret and each of its lines, escaped too, in errors of jobs and by `redacted` from now on."""
    with _lock:
        for part in (secret, *secret.splitlines()):
            if len(part) >= MIN_LENGTH:
                for form in _forms(part):
                    _known[form] = _known.pop(form, None)
        while len(_known) > MAX_KNOWN:
            del _known[next(iter(_known))]
    facts.mask = _without_known


def _forms(secret: str) -> Iterator[str]:
    """Yield what a secret looks like in a text, in a URL, and in the `repr` of a text or its JSON."""
    yield secret
    yield from (quote(secret, safe=safe, errors="replace") for safe in ("", "/", " +"))  # The last is SQLAlchemy's.
    yield quote_plus(secret, errors="replace")
    yield repr(secret)[1:-1]
    yield json.dumps(secret)[1:-1]


def redacted(text: str) -> str:
    """Return a text for people without secrets: each is replaced by "(hidden)".

    That is the credentials that this process has read, passwords in URLs, and values with the name of a secret.
    """
    return _without_values(_URL.sub(lambda url: _without_secrets(url[0]), _without_known(text)), _NAME, _VALUE)


def _without_known(text: str) -> str:
    for secret in sorted(_known.copy(), key=len, reverse=True):
        text = text.replace(secret, "(hidden)")
    return text
