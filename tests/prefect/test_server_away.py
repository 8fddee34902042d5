"""A mirror whose server is away: it refuses, answers nonsense, or cannot be reached. No final state is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from executor_adapter.prefect import PrefectMirror
from executor_adapter.prefect.mirror.spool import Spool
from tests.prefect.conftest import Wait
from tests.prefect.test_mirror import jobs, run_mirrored


@contextmanager
def answering(status: int) -> Iterator[str]:
    """Answer each request with this status and a page, as a proxy does; yield the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"] or 0))
            self.send_response(status)
            self.send_header("content-length", "7")
            self.end_headers()
            self.wfile.write(b"<html/>")

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_address[1]}/api"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "the server accepts no events: HTTP 400"),
        (422, "the server accepts no events: HTTP 422"),
        (401, "it refuses the credentials (HTTP 401): check PREFECT_API_KEY"),
        (403, "the credentials do not permit this (HTTP 403): check PREFECT_API_KEY"),
        (404, "there is no Prefect API at this address (HTTP 404): check PREFECT_API_URL"),
        (200, "its answer is not that of a Prefect server"),
    ],
)
def test_a_server_that_takes_nothing_is_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wait_for: Wait, status: int, message: str
) -> None:
    """All states are spooled, and one warning says what is wrong, what to do, and no password."""
    with answering(status) as url, temporary_settings({PREFECT_API_URL: url}):
        mirror = PrefectMirror(spool=Spool(url, tmp_path))
        run_mirrored(mirror, jobs(20, "away"))
        wait_for(lambda: message in caplog.text)
        report = mirror.close(timeout=0.1)
    assert (len(report.spooled), report.missing, report.recorded) == (20, (), 0)
    said = [record.getMessage() for record in caplog.records if "cannot send job states" in record.getMessage()]
    assert len(said) == 1
    assert "secret" not in said[0]
