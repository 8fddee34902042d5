"""Error codes: the code of each exception, its HTTP status and its Retry-After."""

from __future__ import annotations

import csv
import email.message
import errno
import json
import socket
import ssl
import subprocess
import sys
import urllib.error

import httpx
import pandas as pd
import pandera.errors
import pyarrow as pa
import pytest
import requests
import yaml
from pydantic import BaseModel, ValidationError

from executor_adapter import error_codes
from executor_adapter.error_codes import error_code_of, http_status_of, register_error_code, retry_after_of
from executor_adapter.exceptions import (
    ConfigurationError,
    DataCollectionException,
    JobTimeoutError,
    MemoryLimitError,
    WorkerCrashedError,
)
from executor_adapter.job.retry import NEVER_RETRIED
from executor_adapter.job.status import ErrorCode
from tests.waiting import PATIENCE

REQUEST = httpx.Request("GET", "http://127.0.0.1")


def http_error(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(status, request=REQUEST))


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = OSError("what lies between")
    error.__cause__.__context__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataCollectionException("x"), "COLLECTION_ERROR"),
        (DataCollectionException("x", error_code=""), "EXECUTION_ERROR"),
        (DataCollectionException("x", error_code="MINE"), "MINE"),
        (JobTimeoutError("x", error_code="QUEUE_TIMEOUT"), "QUEUE_TIMEOUT"),
        (WorkerCrashedError("x"), "WORKER_CRASHED"),
        (MemoryLimitError("x"), "MEMORY_LIMIT"),
        (TimeoutError(), "TIMEOUT_ERROR"),
        (ConnectionRefusedError(), "NETWORK_ERROR"),
        (socket.gaierror(-2, "unknown name"), "NETWORK_ERROR"),
        (OSError(113, "no route to host"), "NETWORK_ERROR"),
        (OSError(2, "a file that may come"), "EXECUTION_ERROR"),
        (OSError(errno.ENOSPC, "disk full"), "EXECUTION_ERROR"),
        (OSError(errno.EROFS, "read-only"), "CONFIGURATION_ERROR"),
        (PermissionError(13, "no"), "CONFIGURATION_ERROR"),
        (ModuleNotFoundError("x"), "CONFIGURATION_ERROR"),
        (ssl.SSLCertVerificationError("x"), "CONFIGURATION_ERROR"),
        (caused(httpx.ConnectError("x"), ssl.SSLCertVerificationError("x")), "CONFIGURATION_ERROR"),
        (caused(requests.exceptions.SSLError("x"), ssl.SSLCertVerificationError("x")), "CONFIGURATION_ERROR"),
        (requests.exceptions.SSLError("x"), "NETWORK_ERROR"),
        (ssl.SSLEOFError("x"), "NETWORK_ERROR"),
        (httpx.ConnectError("x"), "NETWORK_ERROR"),
        (httpx.ReadTimeout("x"), "NETWORK_ERROR"),
        (http_error(500), "API_ERROR"),
        (http_error(503), "API_ERROR"),
        (http_error(408), "API_ERROR"),
        (http_error(404), "REQUEST_ERROR"),
        (http_error(422), "REQUEST_ERROR"),
        (http_error(401), "CONFIGURATION_ERROR"),
        (http_error(429), "RATE_LIMITED"),
        (json.JSONDecodeError("x", "doc", 0), "DATA_ERROR"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), "DATA_ERROR"),
        (pd.errors.ParserError("x"), "DATA_ERROR"),
        (pd.errors.OutOfBoundsDatetime("x"), "DATA_ERROR"),
        (pandera.errors.SchemaDefinitionError("x"), "CONFIGURATION_ERROR"),
        (pa.lib.ArrowInvalid("x"), "DATA_ERROR"),
        (pa.lib.ArrowNotImplementedError("x"), "CONFIGURATION_ERROR"),
        (csv.Error("x"), "DATA_ERROR"),
        (yaml.YAMLError("x"), "CONFIGURATION_ERROR"),
        (ConfigurationError("x"), "CONFIGURATION_ERROR"),
        (httpx.UnsupportedProtocol("x"), "CONFIGURATION_ERROR"),
        (requests.exceptions.MissingSchema("x"), "CONFIGURATION_ERROR"),
        (requests.exceptions.JSONDecodeError("x", "doc", 0), "DATA_ERROR"),
        (requests.ReadTimeout("x"), "NETWORK_ERROR"),
        (urllib.error.URLError("x"), "NETWORK_ERROR"),
        (urllib.error.HTTPError("u", 404, "x", email.message.Message(), None), "REQUEST_ERROR"),
        (ExceptionGroup("x", [ConnectionError(), ValueError()]), "NETWORK_ERROR"),
        (ExceptionGroup("x", [ConnectionError(), UnicodeError()]), "DATA_ERROR"),
        (SystemExit(404), "EXECUTION_ERROR"),
        (ValueError("x"), "EXECUTION_ERROR"),
    ],
)
def test_each_exception_has_its_error_code(error: BaseException, code: str) -> None:
    """Each exception has the error code that its class, response or cause calls for."""
    assert error_code_of(error) == code


@pytest.fixture
def _registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_codes, "_by_type", [])


@pytest.mark.usefixtures("_registrations")
def test_registered_classes_have_their_codes() -> None:
    """The newest registration for one of an exception's classes wins; a function may pass."""

    class QuotaError(RuntimeError):
        pass

    register_error_code(RuntimeError, "GENERAL")
    register_error_code(QuotaError, lambda error: "QUOTA" if "quota" in str(error) else None)
    assert error_code_of(QuotaError("quota gone")) == "QUOTA"
    assert error_code_of(QuotaError("else")) == "GENERAL"
    assert error_code_of(RuntimeError()) == "GENERAL"


def test_every_code_in_the_tables_is_an_error_code() -> None:
    """The tables have plain strings, because workers do not import ErrorCode; all of them are members of it."""
    named = set(error_codes.CODE_BY_CLASS_NAME.values())
    assert named <= set(ErrorCode)
    assert error_codes.NEVER_RETRIED <= NEVER_RETRIED


def test_a_pydantic_error_is_a_data_error() -> None:
    """A pydantic ValidationError is a DATA_ERROR."""

    class Row(BaseModel):
        age: int

    with pytest.raises(ValidationError) as caught:
        Row.model_validate({"age": "old"})
    assert error_code_of(caught.value) == "DATA_ERROR"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_from_the_response(headers: dict[str, str], seconds: float | None) -> None:
    """Retry-After is read as seconds or as a date, and is None where it is missing or neither."""
    response = httpx.Response(429, request=REQUEST, headers=headers)
    assert retry_after_of(httpx.HTTPStatusError("no", request=REQUEST, response=response)) == seconds
    message = email.message.Message()
    for name, value in headers.items():
        message[name] = value
    assert retry_after_of(urllib.error.HTTPError("u", 429, "no", message, None)) == seconds


def test_an_error_s_status_is_found_in_its_response() -> None:
    """The HTTP status is found in the response of httpx's and requests' errors."""
    assert http_status_of(http_error(418)) == 418
    response = requests.Response()
    response.status_code = 503
    assert http_status_of(requests.HTTPError(response=response)) == 503
    assert http_status_of(httpx.ConnectError("x")) is None
    assert http_status_of(ValueError()) is None


class HostileError(Exception):
    @property
    def response(self) -> None:
        raise RuntimeError("no response")


@pytest.mark.usefixtures("_registrations")
def test_failing_code_of_an_exception_gives_execution_error(caplog: pytest.LogCaptureFixture) -> None:
    """An exception or registered function that fails gives EXECUTION_ERROR, and a log record says so."""

    def fail(error: BaseException) -> str:
        raise KeyError(str(error))

    register_error_code(LookupError, fail)
    assert error_code_of(HostileError()) == "EXECUTION_ERROR"
    assert error_code_of(IndexError()) == "EXECUTION_ERROR"
    assert "cannot determine the error code of IndexError" in caplog.text


def test_no_library_is_imported_for_its_errors() -> None:
    """Finding a code imports none of the libraries whose errors are known."""
    code = (
        "import sys; from executor_adapter.error_codes import error_code_of; error_code_of(ValueError());"
        "print({'httpx', 'requests', 'pandas', 'pandera', 'pydantic', 'yaml', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert done.stdout.strip() == "set()"
