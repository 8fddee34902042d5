"""The port of a program that runs jobs: its metrics for Prometheus, and whether it is healthy.

    /metrics   the metrics of all executors of the process
    /live      200 while the supervisor of each executor makes its turns: restart a program that answers 503
    /ready     200 while also their stores and the Prefect server answer

A 503 says in its text what is wrong. Needs prometheus-client: the extra `metrics`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import make_wsgi_app, start_http_server

from executor_adapter.monitoring import prometheus

logger = logging.getLogger("executor_adapter.metrics")


class MetricsPort:
    """Serves the metrics of the process and the health of its executors, while one that wants it is open."""

    def __init__(self, host: str, port: int) -> None:
        self._metrics = prometheus.metrics
        self._users = 0
        self._host = host
        self._port = port
        self._lock = threading.Lock()
        self._server: WSGIServer | None = None

    @property
    def url(self) -> str | None:
        """The URL of the metrics; None while they are not served."""
        return None if self._server is None else f"http://{self._host}:{self._server.server_port}/metrics"

    def open(self) -> None:
        """Serve for one executor more. A port that is taken is logged as an error; jobs run without metrics."""
        with self._lock:
            self._users += 1
            if self._server is None:
                try:
                    self._server, _ = start_http_server(self._port, self._host, self._metrics.registry)
                    self._server.set_app(self._answer)
                except OSError as error:
                    message = "cannot serve metrics at %s:%d: %s: free the port, or set monitoring.metrics_port"
                    logger.error(message, self._host, self._port, error)

    def leave_to_parent(self) -> None:
        """Close the socket in a forked process, so that the port is free when the parent ends."""
        if self._server is not None:
            self._server.socket.close()

    def close(self) -> None:
        """Serve for one executor less, and after the last one no more."""
        with self._lock:
            self._users -= 1
            server = None if self._users else self._server
            if server is not None:
                self._server = None
        if server is not None:
            server.shutdown()
            server.server_close()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        executors = tuple(self._metrics.executors)
        match environ["PATH_INFO"]:
            case "/live":
                checks = [executor.stuck for executor in executors]
            case "/ready":
                checks = [check for executor in executors for check in (executor.stuck, executor.unready)]
            case _:
                metrics: Iterable[bytes] = make_wsgi_app(self._metrics.registry)(environ, start_response)
                return metrics
        # Side by side: each may take its whole time, and a probe waits for one such time only.
        with ThreadPoolExecutor(len(checks) or 1) as asking:
            wrong = [line for lines in asking.map(lambda check: check(), checks) for line in lines]
        start_response("503 Service Unavailable" if wrong else "200 OK", [("Content-Type", "text/plain")])
        return [f"{line}\n".encode() for line in dict.fromkeys(wrong) or ["fine"]]


_ports: dict[tuple[str, int], MetricsPort] = {}
_ports_lock = threading.Lock()


def metrics_at(host: str, port: int) -> MetricsPort:
    """Return this process's port at that address."""
    with _ports_lock:
        return _ports.setdefault((host, port), MetricsPort(host, port))


def _leave_to_parent() -> None:
    """Forget in a forked process the ports, the executors and what was counted: they are the parent's."""
    global _ports_lock
    _ports_lock = threading.Lock()
    for port in _ports.values():
        port.leave_to_parent()
    _ports.clear()
    prometheus.metrics.start_anew()


os.register_at_fork(after_in_child=_leave_to_parent)
