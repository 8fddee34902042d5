"""A real HTTP server on a thread, whose answers a test decides."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
"""Status code, headers and body."""
Respond = Callable[[str, Any], Answer]
Headers = dict[str, str]
"""Returns the answer for a path with its query, and the body's JSON, or None without a body."""


def as_json(rows: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()


@contextmanager
def serving(respond: Respond) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Serve, and yield the server's URL and the list of requests that it gets."""
    requests: list[tuple[str, Any]] = []

    def respond_to(path: str, body: Any, headers: Headers) -> Answer:
        requests.append((path, body))
        return respond(path, body)

    with _server(respond_to) as url:
        yield url, requests


@contextmanager
def recording_headers(respond: Callable[[str, Headers], Answer]) -> Iterator[tuple[str, list[Headers]]]:
    """Serve, and yield the server's URL and the list of headers that it gets, by their names in lower case."""
    seen: list[Headers] = []

    def respond_to(path: str, body: Any, headers: Headers) -> Answer:
        seen.append(headers)
        return respond(path, headers)

    with _server(respond_to) as url:
        yield url, seen


@contextmanager
def _server(respond: Callable[[str, Any, Headers], Answer]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length)
            body = json.loads(content) if content else None
            got = {name.lower(): value for name, value in self.headers.items()}
            status, headers, answer = respond(self.path, body, got)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(answer))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: Any) -> None:
            """Write no access log into the test's output."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
