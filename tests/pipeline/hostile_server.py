"""A real HTTP server on a thread that answers as a test wants, down to the bytes on the wire."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Request:
    """One request as it came."""

    method: str
    path: str
    """The path as it is on the wire, without its query."""
    query: dict[str, str]
    headers: dict[str, str]
    """By name in small letters."""
    body: bytes
    write: Callable[[bytes], Any]
    """Writes bytes to the connection."""

    @property
    def target(self) -> str:
        return self.path + ("?" + "&".join(f"{k}={v}" for k, v in self.query.items()) if self.query else "")


@dataclass
class Raw:
    """Bytes to be sent as they are, in pieces; then the connection is closed."""

    pieces: Iterator[bytes] | list[bytes]


Answer = tuple[int, dict[str, str], bytes] | Raw
Respond = Callable[[Request], Answer]


@dataclass
class Api:
    """A server that runs: its address, and the requests that it got."""

    url: str
    requests: list[Request] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        return [request.target for request in self.requests]


def as_json(value: Any, **headers: str) -> Answer:
    """Answer with JSON; an underscore in a header's name is a hyphen."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return 200, {"Content-Type": "application/json", **named}, json.dumps(value).encode()


def raw_json(body: bytes, *headers: str) -> Raw:
    """Answer with these headers alone, so that they may be wrong."""
    lines = ["HTTP/1.1 200 OK", "Content-Type: application/json", *headers, "", ""]
    return Raw(["\r\n".join(lines).encode(), body])


@contextmanager
def serving(respond: Respond) -> Iterator[Api]:
    """Serve until the block ends."""
    api = Api("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            place = urlsplit(self.path)
            request = Request(
                method=self.command,
                path=place.path,
                query={name: values[0] for name, values in parse_qs(place.query).items()},
                headers={name.lower(): value for name, value in self.headers.items()},
                body=self.rfile.read(int(self.headers.get("Content-Length") or 0)),
                write=self.wfile.write,
            )
            api.requests.append(request)
            answer = respond(request)
            try:
                self._send(answer)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # The client has seen enough.

        def _send(self, answer: Answer) -> None:
            if isinstance(answer, Raw):
                self.close_connection = True
                for piece in answer.pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
                return
            status, headers, body = answer
            self.send_response(status)
            length = {} if status == 304 else {"Content-Length": str(len(body))}
            for name, value in {**headers, **length}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def log_message(self, format: str, *args: Any) -> None:
            """Write no access log into the test's output."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    api.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
