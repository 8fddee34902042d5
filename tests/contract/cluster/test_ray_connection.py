"""Tests when a program leaves its local Ray cluster, with a stand-in for Ray whose control store is gone."""

from __future__ import annotations

import socket
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.pools.cluster.engines import ray_connection
from executor_adapter.pools.cluster.engines.ray import RayPool
from executor_adapter.pools.cluster.engines.ray_connection import RayUser
from tests.waiting import PATIENCE


class RayWithoutStore:
    """What a connection needs of Ray. Nothing listens at its address."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self.is_open = False
        self.has_ended = threading.Event()

    def init(self, **options: Any) -> None:
        self.is_open = True

    def is_initialized(self) -> bool:
        return self.is_open

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(gcs_address=self._address, get_job_id=lambda: "1")

    def shutdown(self) -> None:
        self.is_open = False
        self.has_ended.set()


def test_a_local_cluster_without_its_store_is_left_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was started here never comes back, so its cluster is left long before Ray ends the program."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "3600")
    monkeypatch.setattr(ray_connection, "LOCAL_LOST_SECONDS", 0.05)
    monkeypatch.setattr(ray_connection, "PROBE_INTERVAL", 0.01)
    ray = RayWithoutStore()
    monkeypatch.setitem(sys.modules, "ray", ray)  # type: ignore[arg-type]
    user = RayUser()
    user.join(None, {})
    try:
        assert ray.has_ended.wait(PATIENCE)
        assert "its control store did not answer" in user.why_ended()
    finally:
        user.leave()


def test_nothing_is_sent_once_the_connection_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is late gets an error: Ray ends a program that calls an actor without a connection."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ray", RayWithoutStore())  # type: ignore[arg-type]
    user, sent = RayUser(), list[str]()
    user.join(None, {})
    user.call(lambda: sent.append("before"))
    user.leave()
    with pytest.raises(ConnectionError, match="connection to Ray"):
        user.call(lambda: sent.append("after"))
    assert sent == ["before"]


def test_a_thread_that_waits_for_an_answer_is_let_go_when_the_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the program awaits of an actor may never come; the thread that waits is not inside Ray, and not forever."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_connection, "PROBE_INTERVAL", 0.01)
    monkeypatch.setitem(sys.modules, "ray", RayWithoutStore())  # type: ignore[arg-type]
    user, asked = RayUser(), threading.Event()
    user.join(None, {})

    def send() -> Unanswered:
        asked.set()
        return Unanswered()

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(user.answer, send)
        assert asked.wait(PATIENCE)
        user.leave()
        with pytest.raises(ConnectionError, match="connection to Ray"):
            waiting.result(PATIENCE)


class Unanswered:
    """An ObjectRef of a call that never ends."""

    def future(self) -> Future[bytes]:
        return Future()


def test_a_reference_of_a_connection_that_has_ended_starts_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for it without a connection, Ray would start a cluster in the thread that submits."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = RayWithoutStore()
    with pytest.raises(InvalidJobError, match="data is an ObjectRef of a connection to Ray that has ended"):
        RayPool.node_value(ray, Mock(), "data")
    assert not ray.is_open
