"""Tests a host that has no file descriptor left: its jobs end, and errors say what is missing."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor_adapter.exceptions import JobSerializationError
from executor_adapter.job.pool_names import StartMethod
from executor_adapter.pools.transport.envelope import Ending
from executor_adapter.worker import wire
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness, alive, harness


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open no further descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def fork_without_pidfd(pool: Harness) -> None:
    """Start the pending assignments while no descriptor is left, so that the workers' pidfds are lost."""
    while pool.pending:
        pool.pool.start(pool.pending.popleft())
    pool.pool.flush()
    with no_descriptor_left():
        pool.until(lambda: all(worker.process.is_forked for worker in pool.pool.workers.members.values()))
    assert not any(worker.process.can_be_interrupted for worker in pool.pool.workers.members.values())


# --- large results ---


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_a_large_result_without_a_free_descriptor_fails_its_job(start_method: StartMethod, tmp_path: Path) -> None:
    """A large result that the host has no file descriptor for fails its job, and the message says what to do."""
    with harness(1, start_method=start_method) as pool:
        pool.warm_up(2)
        lost = pool.submit(functions.large_bytes, 1 << 20, str(tmp_path / "go"))
        pool.until_running(lost)
        with no_descriptor_left():
            (tmp_path / "go").mkdir()
            pool.until_ended(lost)
        assert pool.ending(lost) is Ending.UNSENDABLE
        assert isinstance(pool.error(lost), JobSerializationError)
        assert "no file descriptor is left" in str(pool.error(lost))
        assert "ulimit -n" in str(pool.error(lost))
        assert pool.value(pool.submit(functions.large_bytes, 1 << 20)) == bytes(1 << 20)


def test_a_lost_descriptor_keeps_its_place_among_the_others() -> None:
    """A descriptor that was lost still counts in the order, so that no frame gets the descriptor of another."""
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.devnull) as file:
        reader = wire.FrameReader(ours, bytearray(1 << 16))
        first, second = (wire.pack_frame(wire.RETURNED, wire.IN_FILE, body=bytes(size)) for size in (100, 10))
        wire.send_fds(theirs, first[:50], [file.fileno()])
        with no_descriptor_left():
            assert reader.read() == []
        wire.send_fds(theirs, first[50:], [])
        wire.send_fds(theirs, second, [file.fileno()])
        assert len(reader.read()) == 2
        lost, taken = reader.fds
        assert lost == -1
        assert os.path.samestat(os.fstat(taken), os.fstat(file.fileno()))
        reader.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(taken)


# --- workers without a pidfd ---


@pytest.mark.parametrize("grace", [0.0, 0.05])
def test_a_worker_whose_pidfd_was_lost_is_killed(tmp_path: Path, grace: float) -> None:
    """A worker whose pidfd was lost is killed by the guardian when its job is stopped."""
    with harness(1) as pool:
        stubborn = pool.submit(functions.ignore_sigterm, str(tmp_path / "pid"), 3600)
        fork_without_pidfd(pool)
        pool.until((tmp_path / "pid").exists)
        pool.stop(stubborn, grace=grace)
        assert not alive(int((tmp_path / "pid").read_text()))


def test_a_worker_whose_pidfd_was_lost_is_killed_though_its_guardian_is_stopped(
    pool: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose pidfd was lost is killed even if its guardian is stopped by a signal."""
    stubborn = pool.submit(functions.ignore_sigterm, str(tmp_path / "pid"), 60)
    fork_without_pidfd(pool)
    pool.until((tmp_path / "pid").exists)
    os.kill(pool.pool.workers.launcher.guardian.pid, signal.SIGSTOP)
    pool.ask_to_stop(stubborn, grace=0)
    monkeypatch.setattr(pool, "now", lambda: time.monotonic() + 8.0)
    assert pool.ending(stubborn) is Ending.STOPPED
    assert not alive(int((tmp_path / "pid").read_text()))


def test_a_worker_whose_pidfd_was_lost_serves_one_job() -> None:
    """A worker whose pidfd was lost runs one job only, since it cannot be interrupted."""
    with harness(1) as pool:
        first = pool.submit(functions.pid)
        fork_without_pidfd(pool)
        lost = list(pool.pids)
        served = [pool.value(first), *(pool.value(pool.submit(functions.pid)) for _ in range(5))]
        assert served[0] in lost
        assert all(served.count(pid) <= 1 for pid in lost)
