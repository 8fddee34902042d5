"""Maps exceptions to error codes.

The code of an exception is given by the first of these that applies:

    its own `error_code` attribute
    a registration (register_error_code) for one of its classes, the newest first
    the HTTP status of its response: errors of httpx, requests, aiohttp and urllib have one
    the table of known classes, by name, so that no library is imported for its errors
    the kind of OSError
    EXECUTION_ERROR

| HTTP status | code | retried |
| --- | --- | --- |
| 408, 409, 423, 425, 5xx | API_ERROR | yes: the server may recover |
| 429 | RATE_LIMITED | yes, after the time that Retry-After asks for |
| 401, 403, 407 | CONFIGURATION_ERROR | no: credentials or rights are missing |
| any other 4xx | REQUEST_ERROR | no: the same request would be refused again |

An ExceptionGroup has the code of its first error that is never retried, else that of its first error.

Workers use this module, so it uses the standard library alone, and no module of that which takes long to import.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from executor_adapter.error_facts import kept_facts, kinds_of

logger = logging.getLogger("executor_adapter")

Classify = Callable[[BaseException], str | None]

_by_type: list[tuple[type[BaseException], str | Classify]] = []

CODE_BY_CLASS_NAME: Final[dict[str, str]] = {
    "httpx.UnsupportedProtocol": "CONFIGURATION_ERROR",
    "httpx.InvalidURL": "CONFIGURATION_ERROR",
    "httpx.TransportError": "NETWORK_ERROR",
    "httpx.HTTPError": "API_ERROR",
    "requests.exceptions.JSONDecodeError": "DATA_ERROR",
    "requests.exceptions.InvalidURL": "CONFIGURATION_ERROR",
    "requests.exceptions.InvalidSchema": "CONFIGURATION_ERROR",
    "requests.exceptions.MissingSchema": "CONFIGURATION_ERROR",
    "requests.exceptions.ConnectionError": "NETWORK_ERROR",
    "requests.exceptions.Timeout": "NETWORK_ERROR",
    "requests.exceptions.ChunkedEncodingError": "NETWORK_ERROR",
    "requests.exceptions.RequestException": "API_ERROR",
    "urllib3.exceptions.HTTPError": "NETWORK_ERROR",
    "aiohttp.client_exceptions.ClientConnectionError": "NETWORK_ERROR",
    "aiohttp.client_exceptions.ClientPayloadError": "NETWORK_ERROR",
    "aiohttp.client_exceptions.InvalidURL": "CONFIGURATION_ERROR",
    "aiohttp.client_exceptions.ClientError": "API_ERROR",
    "ssl.SSLCertVerificationError": "CONFIGURATION_ERROR",
    "json.decoder.JSONDecodeError": "DATA_ERROR",
    "urllib.error.URLError": "NETWORK_ERROR",
    "http.client.HTTPException": "NETWORK_ERROR",
    "botocore.exceptions.ConnectionError": "NETWORK_ERROR",
    "botocore.exceptions.HTTPClientError": "NETWORK_ERROR",
    "botocore.exceptions.NoCredentialsError": "CONFIGURATION_ERROR",
    "botocore.exceptions.PartialCredentialsError": "CONFIGURATION_ERROR",
    "pandera.errors.SchemaError": "DATA_ERROR",
    "pandera.errors.SchemaErrors": "DATA_ERROR",
    "pandera.errors.SchemaInitError": "CONFIGURATION_ERROR",
    "pandera.errors.SchemaDefinitionError": "CONFIGURATION_ERROR",
    "pandas.errors.ParserError": "DATA_ERROR",
    "pandas.errors.EmptyDataError": "DATA_ERROR",
    "pandas.errors.DataError": "DATA_ERROR",
    "pandas.errors.MergeError": "DATA_ERROR",
    "pandas.errors.IntCastingNaNError": "DATA_ERROR",
    "pandas.errors.OutOfBoundsDatetime": "DATA_ERROR",
    "pandas._libs.tslibs.np_datetime.OutOfBoundsDatetime": "DATA_ERROR",
    "pandas._libs.tslibs.parsing.DateParseError": "DATA_ERROR",
    "pyarrow.lib.ArrowInvalid": "DATA_ERROR",
    "pyarrow.lib.ArrowTypeError": "DATA_ERROR",
    "pyarrow.lib.ArrowNotImplementedError": "CONFIGURATION_ERROR",
    "sqlalchemy.exc.DataError": "DATA_ERROR",
    "sqlalchemy.exc.IntegrityError": "DATA_ERROR",
    "pydantic_core._pydantic_core.ValidationError": "DATA_ERROR",
    "pydantic_settings.exceptions.SettingsError": "CONFIGURATION_ERROR",
    "yaml.error.YAMLError": "CONFIGURATION_ERROR",
    "configparser.Error": "CONFIGURATION_ERROR",
    "tomllib.TOMLDecodeError": "CONFIGURATION_ERROR",
    "_csv.Error": "DATA_ERROR",
    "zipfile.BadZipFile": "DATA_ERROR",
    "gzip.BadGzipFile": "DATA_ERROR",
    "xml.etree.ElementTree.ParseError": "DATA_ERROR",
    "builtins.TimeoutError": "TIMEOUT_ERROR",
    "builtins.ConnectionError": "NETWORK_ERROR",
    "builtins.UnicodeError": "DATA_ERROR",
    # The set-up of the file system or the program is wrong. FileNotFoundError is not here: the file may still come.
    "builtins.PermissionError": "CONFIGURATION_ERROR",
    "builtins.IsADirectoryError": "CONFIGURATION_ERROR",
    "builtins.NotADirectoryError": "CONFIGURATION_ERROR",
    "builtins.ImportError": "CONFIGURATION_ERROR",
}

_NETWORK_ERRNOS: Final = frozenset(
    {
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECONNABORTED, errno.ECONNRESET, errno.ENOTCONN),
        *(errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    }
)
_SETUP_ERRNOS: Final = frozenset({errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP})

MAX_CAUSES = 10
"""Causes of an error that are examined."""

_TEMPORARY_STATUSES: Final = frozenset({408, 409, 423, 425})
_DENIED_STATUSES: Final = frozenset({401, 403, 407})
NEVER_RETRIED: Final = frozenset({"DATA_ERROR", "REQUEST_ERROR", "CONFIGURATION_ERROR", "SERIALIZATION_ERROR"})


def register_error_code(kind: type[BaseException], code: str | Classify) -> None:
    """Give exceptions of class `kind` an error code; the newest registration wins.

    Args:
        kind: the class; its subclasses are included.
        code: the code, or a function that takes the exception and returns a code, or None to leave it to the next rule.
    """
    _by_type.insert(0, (kind, code))


def error_code_of(error: BaseException) -> str:
    """Return the error code of an exception; never raises, whatever a property or a registered function does."""
    if (facts := kept_facts(error)) is not None:
        return facts.code
    try:
        own = getattr(error, "error_code", None)
        if isinstance(own, str) and own:
            return str(own)
        if isinstance(error, BaseExceptionGroup):
            return _of_group(error)
        return _registered(error) or _http_code(error) or _named(error) or _of_system(error)
    except Exception:
        logger.warning(
            "cannot determine the error code of %s: EXECUTION_ERROR is used",
            type(error).__qualname__,
            exc_info=True,
        )
        return "EXECUTION_ERROR"


def retry_after_of(error: BaseException) -> float | None:
    """Return the seconds that the server asked to wait; None where it did not. Never raises.

    They are the exception's `retry_after`, or its response's Retry-After header (RFC 9110, 10.2.3: seconds or an HTTP
    date); infinite where they are too many for a float.
    """
    if (facts := kept_facts(error)) is not None:
        return facts.retry_after
    try:
        own = getattr(error, "retry_after", None)
        if isinstance(own, int | float):
            return float("inf") if own > sys.float_info.max else float(max(0, own))
        header = _header(error, "retry-after")
        return None if header is None else _retry_after(header.strip())
    except Exception:
        logger.warning("cannot read the Retry-After of %s: it is ignored", type(error).__qualname__, exc_info=True)
        return None


def _retry_after(header: str) -> float | None:
    from email.utils import parsedate_to_datetime  # Few errors name a date.

    if header.isascii() and header.isdigit():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def http_status_of(error: BaseException) -> int | None:
    """Return the HTTP status that an error of httpx, requests, urllib or aiohttp carries; None where it has none."""
    for holder, name in ((getattr(error, "response", None), "status_code"), (error, "code"), (error, "status")):
        status = getattr(holder, name, None)
        if isinstance(status, int) and 100 <= status <= 599 and (holder is not error or hasattr(error, "headers")):
            return status
    return None


def _of_group(group: BaseExceptionGroup[BaseException]) -> str:
    codes = [error_code_of(error) for error in group.exceptions]
    return next((code for code in codes if code in NEVER_RETRIED), codes[0])


def _registered(error: BaseException) -> str | None:
    codes = (code(error) if callable(code) else code for kind, code in _by_type if isinstance(error, kind))
    return next((code for code in codes if code is not None), None)


def _http_code(error: BaseException) -> str | None:
    status = http_status_of(error)
    if status is None or status < 400:
        return None
    if status == 429:
        return "RATE_LIMITED"
    if status >= 500 or status in _TEMPORARY_STATUSES:
        return "API_ERROR"
    return "CONFIGURATION_ERROR" if status in _DENIED_STATUSES else "REQUEST_ERROR"


def _header(error: BaseException, name: str) -> str | None:
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "headers", None)
    get = getattr(headers, "get", None)
    if not callable(get):
        return None
    found = get(name) or get(name.title())  # A plain dict is case-sensitive, unlike other mappings of headers.
    return found if isinstance(found, str) else None


def _named(error: BaseException) -> str | None:
    for kind in kinds_of(error):
        # The module is the one that a class names: "httpx" for those of httpx, "requests.exceptions" for requests.
        if (code := CODE_BY_CLASS_NAME.get(kind)) is not None:
            return "CONFIGURATION_ERROR" if code == "NETWORK_ERROR" and _is_caused_by_certificate(error) else code
    return None


def _is_caused_by_certificate(error: BaseException) -> bool:
    """Return whether a certificate that could not be verified is its cause: libraries wrap that in their own errors."""
    cause: BaseException | None = error
    for _ in range(MAX_CAUSES):
        if cause is None or "ssl.SSLCertVerificationError" in kinds_of(cause):
            return cause is not None
        cause = cause.__cause__ or cause.__context__
    return False


def _of_system(error: BaseException) -> str:
    if isinstance(error, OSError):
        if error.errno in _NETWORK_ERRNOS or type(error).__module__ in {"socket", "ssl"}:
            return "NETWORK_ERROR"
        if error.errno in _SETUP_ERRNOS:
            return "CONFIGURATION_ERROR"
    return "EXECUTION_ERROR"
