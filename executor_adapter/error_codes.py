"""Which error code an exception stands for.

An `error_code` attribute of the exception wins; else the first registered kind that it is an instance of, the newest
registration first; else EXECUTION_ERROR. Kinds from other packages are named, not imported: a process that never
imported pandas cannot raise its errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from executor_adapter.job import ErrorCode

Classify = Callable[[BaseException], str | None]

_by_type: list[tuple[type[BaseException], str | Classify]] = []

_BY_NAME: Final[dict[str, str]] = {
    "httpx.TimeoutException": ErrorCode.NETWORK_ERROR,
    "httpx.TransportError": ErrorCode.NETWORK_ERROR,
    "httpx.HTTPError": ErrorCode.API_ERROR,
    "httpx.InvalidURL": ErrorCode.CONFIGURATION_ERROR,
    "requests.exceptions.JSONDecodeError": ErrorCode.DATA_ERROR,
    "requests.exceptions.ConnectionError": ErrorCode.NETWORK_ERROR,
    "requests.exceptions.Timeout": ErrorCode.NETWORK_ERROR,
    "requests.exceptions.ChunkedEncodingError": ErrorCode.NETWORK_ERROR,
    "requests.exceptions.RequestException": ErrorCode.API_ERROR,
    "urllib3.exceptions.HTTPError": ErrorCode.NETWORK_ERROR,
    "pandera.errors.SchemaError": ErrorCode.DATA_ERROR,
    "pandera.errors.SchemaErrors": ErrorCode.DATA_ERROR,
    "pandas.errors.ParserError": ErrorCode.DATA_ERROR,
    "pandas.errors.EmptyDataError": ErrorCode.DATA_ERROR,
    "pydantic_core._pydantic_core.ValidationError": ErrorCode.DATA_ERROR,
    "yaml.error.YAMLError": ErrorCode.CONFIGURATION_ERROR,
}

_BUILTIN: Final[tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...]] = (
    (TimeoutError, ErrorCode.TIMEOUT_ERROR),
    (ConnectionError, ErrorCode.NETWORK_ERROR),
    ((json.JSONDecodeError, UnicodeError), ErrorCode.DATA_ERROR),
)

_NETWORK_ERRNOS: Final = frozenset({100, 101, 102, 103, 104, 110, 111, 112, 113})
"""ENETDOWN to EHOSTUNREACH, as Linux numbers them (errno(3))."""


def register_error_code(kind: type[BaseException], code: str | Classify) -> None:
    """Let exceptions of `kind` stand for `code`; a function gets the exception and may give None to pass."""
    _by_type.insert(0, (kind, code))


def error_code_of(error: BaseException) -> str:
    """The error code that `error` stands for."""
    own = getattr(error, "error_code", None)
    if isinstance(own, str):
        return str(own)
    return _registered(error) or _http_status(error) or _named(error) or _builtin(error)


def retry_after_of(error: BaseException) -> float | None:
    """Seconds that the other side asked to wait: the exception's `retry_after`, or its response's Retry-After header
    (RFC 9110, 10.2.3: seconds or an HTTP date)."""
    own = getattr(error, "retry_after", None)
    if isinstance(own, int | float):
        return max(0.0, float(own))
    header = getattr(getattr(error, "response", None), "headers", {}).get("retry-after")
    if not isinstance(header, str):
        return None
    if header.strip().isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def _registered(error: BaseException) -> str | None:
    for kind, code in _by_type:
        if isinstance(error, kind):
            found = code(error) if callable(code) else code
            if found is not None:
                return found
    return None


def _http_status(error: BaseException) -> str | None:
    """From the response that httpx's, requests' and aiohttp's status errors carry."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if not isinstance(status, int):
        return None
    return ErrorCode.RATE_LIMITED if status == 429 else ErrorCode.API_ERROR if status >= 400 else None


def _named(error: BaseException) -> str | None:
    for kind in type(error).__mro__:
        # httpx's classes say "httpx", requests' "requests.exceptions": both name where users import them from.
        code = _BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
        if code is not None:
            return code
    return None


def _builtin(error: BaseException) -> str:
    for kinds, code in _BUILTIN:
        if isinstance(error, kinds):
            return code
    if isinstance(error, OSError) and (error.errno in _NETWORK_ERRNOS or type(error).__module__ in {"socket", "ssl"}):
        return ErrorCode.NETWORK_ERROR
    return ErrorCode.EXECUTION_ERROR
