"""A fake of Prefect Cloud's API, as far as a mirror uses it, that keeps every request."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_KEY,
    PREFECT_API_URL,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    PREFECT_CLOUD_API_URL,
    temporary_settings,
)

from executor_adapter.prefect.mirror.events import iso
from tests.prefect.fake_server import FakeServer


class FakeCloud(ThreadingHTTPServer):
    """Answers a mirror's requests at the address of a workspace, and keeps them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _RequestHandler)
        self.events = FakeServer()
        """Records the events that are sent."""
        self.status = 403
        """Status code of its answer to requests for other resources."""
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}/api"


class _RequestHandler(BaseHTTPRequestHandler):
    server: FakeCloud
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        path = self.path.removeprefix("/api/accounts/mine/workspaces/here")
        self.server.requests.append((path, {name.lower(): value for name, value in self.headers.items()}))
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = json.dumps(self._answer(path, body)).encode()
        self.send_response(204 if path == "/events" else 200)
        if path != "/events":
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
        self.end_headers()
        if path != "/events":
            self.wfile.write(answer)

    def do_GET(self) -> None:
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    def _answer(self, path: str, body: Any) -> Any:
        events = self.server.events
        match path:
            case "/events":
                return events.send([json.dumps(event).encode() for event in body])
            case "/task_runs/filter":
                events.record()
                known = events.recorded(body["task_runs"]["id"]["any_"])
                return [{"id": run, "state": {"name": it.name, "timestamp": iso(it.at)}} for run, it in known.items()]
            case "/flow_runs/filter":
                return []
            case _:
                task_runs = body["task_runs"]
                return events.count(task_runs["id"]["any_"], task_runs["state"]["name"]["any_"][0])

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def cloud_serving() -> Iterator[FakeCloud]:
    """Serve a fake cloud on a thread."""
    server = FakeCloud()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def at_cloud(events: FakeServer | None = None) -> Iterator[FakeCloud]:
    """Point Prefect's settings at a workspace of a fake cloud; `events` records what is sent."""
    with cloud_serving() as cloud:
        cloud.events = events or cloud.events
        settings: dict[Any, Any] = {
            PREFECT_CLOUD_API_URL: cloud.address,
            PREFECT_API_URL: f"{cloud.address}/accounts/mine/workspaces/here",
            PREFECT_API_KEY: "pnu_key",
            PREFECT_API_AUTH_STRING: None,
            PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Proxy": "open"},
        }
        with temporary_settings(settings):
            yield cloud
