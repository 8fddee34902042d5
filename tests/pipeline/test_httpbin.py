"""httpbin, a server that others wrote: its answers are rows, or an error with the right code.

It runs in an environment of its own, because it needs an older greenlet than Prefect. HTTPBIN_PYTHON names the Python
of that environment. What it cannot do (cut bodies, endless pages, bombs) the tests' own server does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from executor_adapter.error_codes import error_code_of
from tests.pipeline.rest import collect, failure, tool

SERVER = """
from httpbin import app
from werkzeug.serving import make_server

server = make_server("127.0.0.1", 0, app, threaded=True)
print(server.port, flush=True)
server.serve_forever()
"""
INSTALL = "uv venv httpbin && uv pip install --python httpbin httpbin, then HTTPBIN_PYTHON=httpbin/bin/python"

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def httpbin() -> Iterator[str]:
    """The URL of a server that runs."""
    python = os.environ.get("HTTPBIN_PYTHON", sys.executable)
    if shutil.which(python) is None:
        pytest.fail(f"HTTPBIN_PYTHON={python} does not exist: {INSTALL}")
    server = subprocess.Popen([python, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        if not port:
            pytest.skip(f"httpbin is not installed for {python}: {INSTALL}")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("path", "resource", "column", "values"),
    [
        ("/json", {"records": "slideshow.slides"}, "type", ["all", "all"]),
        ("/gzip", {"records": "."}, "gzipped", ["true"]),
        ("/stream/5", {"format": "ndjson"}, "id", ["0", "1", "2", "3", "4"]),
        ("/redirect/3", {"records": "."}, "args", ["{}"]),
        ("/absolute-redirect/2", {"records": "."}, "args", ["{}"]),
        ("/anything/a%20b", {"records": ".", "params": {"q": "a&b=ü"}}, "args", ['{"q": "a&b=ü"}']),
    ],
)
def test_answers_are_rows(httpbin: str, tmp_path: Path, path: str, resource: Any, column: str, values: Any) -> None:
    """JSON, packed and streamed, behind redirects, asked for with parameters."""
    found = collect(tmp_path, tool(httpbin, resource={"path": path, **resource}))
    assert [row[column] for row in found] == values


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 410, 418, 422, 429, 500, 502, 503, 504])
def test_statuses_have_their_codes(httpbin: str, tmp_path: Path, status: int) -> None:
    """A status has the code that an error of httpx with it has."""
    request = httpx.Request("GET", httpbin)
    expected = error_code_of(httpx.HTTPStatusError("", request=request, response=httpx.Response(status)))
    assert failure(tmp_path, tool(httpbin, resource={"path": f"/status/{status}"})).error_code == expected


@pytest.mark.parametrize(
    ("path", "code", "said"),
    [
        ("/html", "DATA_ERROR", "sent a web page"),
        ("/brotli", "DATA_ERROR", "sent br, though gzip alone was asked for"),
        ("/deflate", "DATA_ERROR", "sent deflate, though gzip alone was asked for"),
        ("/image/png", "CONFIGURATION_ERROR", "sent image/png"),
        ("/xml", "CONFIGURATION_ERROR", "sent application/xml"),
        ("/redirect/9", "CONFIGURATION_ERROR", "redirects more than 5 times"),
        ("/delay/5", "NETWORK_ERROR", "timed out"),
    ],
)
def test_what_is_no_data_is_an_error(httpbin: str, tmp_path: Path, path: str, code: str, said: str) -> None:
    """Web pages, images, packings that nobody asked for, circles and silence are named."""
    error = failure(tmp_path, tool(httpbin, timeout=0.5, resource={"path": path}))
    assert (error.error_code, said in str(error)) == (code, True), error


@pytest.mark.parametrize("path", ["/basic-auth/me/hush-hush-1234", "/hidden-basic-auth/me/hush-hush-1234"])
def test_a_password_opens_what_is_closed(
    httpbin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """With basic authentication there is an answer, and without it an error that is not retried."""
    monkeypatch.setenv("API_SECRET", "hush-hush-1234")
    resource = {"path": path, "records": "."}
    (row,) = collect(
        tmp_path / "open", tool(httpbin, credential={"env": "API_SECRET"}, username="me", resource=resource)
    )
    assert row == {"authenticated": "true", "user": "me"}
    error = failure(tmp_path / "closed", tool(httpbin, resource=resource))
    assert error.error_code in {"CONFIGURATION_ERROR", "REQUEST_ERROR"}


def test_a_token_is_sent_and_does_not_follow_a_redirect(
    httpbin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same server under another name is another origin, which is told nothing."""
    monkeypatch.setenv("API_SECRET", "hush-hush-1234")
    secret = {"credential": {"env": "API_SECRET"}}
    (row,) = collect(tmp_path / "own", tool(httpbin, **secret, resource={"path": "/bearer", "records": "."}))
    assert row["authenticated"] == "true"
    other = httpbin.replace("127.0.0.1", "localhost")
    resource = {"path": "/redirect-to", "params": {"url": f"{other}/headers"}, "records": "headers"}
    (headers,) = collect(tmp_path / "other", tool(httpbin, **secret, resource=resource, allowed_hosts=["localhost"]))
    assert "Authorization" not in headers
    assert headers["Host"].startswith("localhost")
