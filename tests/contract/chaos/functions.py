"""Functions of the jobs of a chaos run: well-behaved ones, and ones that misbehave. Importable in a worker."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from tests.contract.process_pool import leftovers

LINGERING = "86399"
"""Seconds that orphans sleep: far longer than any test, so that one that is left is found."""


@contextlib.contextmanager
def alone(lock_file: str, number: int) -> Iterator[None]:
    """Lock byte `number` of the lock file while the job runs. A job that finds it locked adds a line to `.overlaps`.

    Such a lock (POSIX record lock) belongs to the process, and the kernel releases it when the process dies.
    """
    with open(lock_file, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except BlockingIOError:
            with open(lock_file + ".overlaps", "a") as overlaps:
                overlaps.write(f"{number}\n")
        yield


# --- well-behaved: they complete, whatever happens around them ---


def answer(number: int) -> int:
    """Return the value that every well-behaved job must return."""
    return number * 31 + 7


def compute(lock_file: str, number: int) -> int:
    with alone(lock_file, number):
        return answer(number)


def nap(lock_file: str, number: int) -> int:
    with alone(lock_file, number):
        time.sleep(0.001 * (number % 20))
        return answer(number)


def give_much(lock_file: str, number: int) -> tuple[int, bytes]:
    """Return a result that is sent in a memory file."""
    with alone(lock_file, number):
        return answer(number), bytes(1 << 20)


def take_much(lock_file: str, number: int, much: bytes) -> int:
    with alone(lock_file, number):
        assert len(much) == 1 << 20
        return answer(number)


def write_garbage(lock_file: str, number: int) -> int:
    with alone(lock_file, number):
        os.write(1, hashlib.shake_128(b"%d" % number).digest(1 << 14))
        os.write(2, bytes(1 << 12) + b"\xff\xfe\n\r\x1b[2J")
        print("\udcff no text at all", number)
        return answer(number)


def close_low_descriptors(lock_file: str, number: int) -> int:
    with alone(lock_file, number):
        pass
    os.closerange(3, 256)
    return answer(number)


def close_streams(lock_file: str, number: int) -> int:
    with alone(lock_file, number):
        sys.stdout.close()
        os.close(1)
        os.close(2)
        return answer(number)


def replace_handlers(lock_file: str, number: int) -> int:
    with alone(lock_file, number):
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(each, signal.SIG_IGN)
        return answer(number)


def leave_state(lock_file: str, number: int) -> int:
    """Leave one thing changed in the worker, or all of them."""
    time.sleep(0.002)  # What a shorter call leaves is put back before another function, not before this one again.
    with alone(lock_file, number):
        names = [name for name in leftovers.LEFT if name != "traceback_later"]
        if number % 10:
            leftovers.leave(names[number % len(names)])
        else:
            leftovers.leave_all()
    return answer(number)


def expect_state(lock_file: str, number: int) -> int:
    """Check that no other job left anything changed in the worker."""
    with alone(lock_file, number):
        state = leftovers.describe_state()
        assert state["returncode of false"] == 1
        assert state["broken pipe"] == "raised"
        assert state["timers"] == [(0.0, 0.0)] * 3
        assert state["mask"] == []
        assert state["descriptors"] == ["/dev/null", "pipe", "pipe"]
        assert "LEFT_BEHIND" not in state["environment"]
        assert state["logging"][0] <= logging.INFO
        assert state["folder"] != "/"
        assert state["umask"] != 0
        assert state["timeout"] is None
        assert state["recursion"] > 123
        assert state["warning"] is None
    return answer(number)


def leave_child(lock_file: str, number: int) -> int:
    """Leave a process behind, which ends with its worker."""
    with alone(lock_file, number):
        pass
    if os.fork() == 0:
        linger()
    return answer(number)


def leave_daemon(lock_file: str, number: int) -> int:
    """Leave a daemon behind, forked twice into a session of its own."""
    with alone(lock_file, number):
        pass
    fork_daemon()
    return answer(number)


def leave_session(lock_file: str, number: int) -> int:
    """Leave a program behind, in a session and an environment of its own."""
    with alone(lock_file, number):
        subprocess.Popen(["sleep", LINGERING], start_new_session=True, env={})
        return answer(number)


def compute_in_thread(number: int) -> int:
    time.sleep(0.001 * (number % 5))
    return answer(number)


async def compute_on_loop(number: int) -> int:
    await asyncio.sleep(0.001 * (number % 5))
    return answer(number)


# --- misbehaving: each must end with its error ---


def linger() -> None:
    """Sleep until killed, and ignore all other signals; never returns."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(float(LINGERING))
    os._exit(0)


def fork_daemon() -> None:
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() == 0:
            linger()
        os._exit(0)
    os.waitpid(middle, 0)


def hang() -> None:
    time.sleep(60)


def hang_ignoring_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()


def hang_in_c() -> None:
    """Hang while holding the GIL."""
    ctypes.PyDLL(None).sleep(60)


def hang_with_daemon() -> None:
    fork_daemon()
    hang()


def hang_in_new_session() -> None:
    """Wait forever for a child in a new session: the worker leads a session, so it may not call setsid itself."""
    with contextlib.suppress(PermissionError):
        os.setsid()
    child = os.fork()
    if child == 0:
        os.setsid()
        linger()
    os.waitpid(child, 0)


def hang_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    hang()


def eat_memory() -> None:
    held = bytearray()
    while True:
        held += b"x" * (16 << 20)
        time.sleep(0.001)


def eat_memory_in_child() -> None:
    child = os.fork()
    if child == 0:
        eat_memory()
    os.waitpid(child, 0)
    hang()


def crash() -> None:
    ctypes.string_at(0)


def exit_at_once() -> None:
    os._exit(3)


def close_all_descriptors() -> None:
    """Close the worker's socket too, so that it can report nothing about this job."""
    os.closerange(0, 4096)
    hang()


def kill_own_group() -> None:
    os.killpg(0, signal.SIGKILL)


def fail() -> None:
    raise LookupError("on purpose")


def stick_in_thread() -> None:
    """Stay in C code for longer than the pool waits for the thread."""
    time.sleep(1.0)


def spin_in_thread() -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.01)


async def hang_on_loop() -> None:
    await asyncio.sleep(60)


async def ignore_cancel_on_loop() -> None:
    """Ignore the cancellation, and stay for longer than the pool waits for it."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(1.0)
