"""Which error code an exception stands for."""

from __future__ import annotations

import json
import socket

import httpx
import pandas as pd
import pytest

from executor_adapter import error_codes
from executor_adapter.error_codes import error_code_of, register_error_code
from executor_adapter.exceptions import DataCollectionException, JobTimeoutError, MemoryLimitError, WorkerCrashedError

REQUEST = httpx.Request("GET", "http://127.0.0.1")


def http_error(status: int) -> httpx.HTTPStatusError:
    return httpx.HTTPStatusError("no", request=REQUEST, response=httpx.Response(status, request=REQUEST))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataCollectionException("x"), "COLLECTION_ERROR"),
        (DataCollectionException("x", error_code="MINE"), "MINE"),
        (JobTimeoutError("x", error_code="QUEUE_TIMEOUT"), "QUEUE_TIMEOUT"),
        (WorkerCrashedError("x"), "WORKER_CRASHED"),
        (MemoryLimitError("x"), "MEMORY_LIMIT"),
        (TimeoutError(), "TIMEOUT_ERROR"),
        (ConnectionRefusedError(), "NETWORK_ERROR"),
        (socket.gaierror(-2, "unknown name"), "NETWORK_ERROR"),
        (OSError(113, "no route to host"), "NETWORK_ERROR"),
        (OSError(2, "no such file"), "EXECUTION_ERROR"),
        (httpx.ConnectError("x"), "NETWORK_ERROR"),
        (httpx.ReadTimeout("x"), "NETWORK_ERROR"),
        (http_error(500), "API_ERROR"),
        (http_error(404), "API_ERROR"),
        (http_error(429), "RATE_LIMITED"),
        (json.JSONDecodeError("x", "doc", 0), "DATA_ERROR"),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), "DATA_ERROR"),
        (pd.errors.ParserError("x"), "DATA_ERROR"),
        (ValueError("x"), "EXECUTION_ERROR"),
    ],
)
def test_an_exception_stands_for(error: BaseException, code: str) -> None:
    assert error_code_of(error) == code


@pytest.fixture
def _registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_codes, "_by_type", [])


@pytest.mark.usefixtures("_registrations")
def test_kinds_of_one_s_own_are_registered() -> None:
    class QuotaError(RuntimeError):
        pass

    register_error_code(RuntimeError, "GENERAL")
    register_error_code(QuotaError, lambda error: "QUOTA" if "quota" in str(error) else None)
    assert error_code_of(QuotaError("quota gone")) == "QUOTA"
    assert error_code_of(QuotaError("else")) == "GENERAL"
    assert error_code_of(RuntimeError()) == "GENERAL"
