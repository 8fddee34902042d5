"""What the jobs of a storm do: honest ones, and those that misbehave in every way there is. Importable in a worker."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

LINGERING = "86399"
"""Seconds that orphans sleep: far beyond any test, so that one which is left is found."""


@contextlib.contextmanager
def alone(ledger: str, number: int) -> Iterator[None]:
    """Hold byte `number` of the ledger while the job runs; whoever finds it held says so beside the ledger.

    Such a lock (POSIX record lock) belongs to the process, and the kernel lets go of it when that dies.
    """
    with open(ledger, "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except BlockingIOError:
            with open(ledger + ".overlaps", "a") as overlaps:
                overlaps.write(f"{number}\n")
        yield


# --- honest: whatever happens around them, they complete ---


def answer(number: int) -> int:
    """What every honest job gives."""
    return number * 31 + 7


def compute(ledger: str, number: int) -> int:
    with alone(ledger, number):
        return answer(number)


def nap(ledger: str, number: int) -> int:
    with alone(ledger, number):
        time.sleep(0.001 * (number % 20))
        return answer(number)


def give_much(ledger: str, number: int) -> tuple[int, bytes]:
    """A result that travels in a memory file."""
    with alone(ledger, number):
        return answer(number), bytes(1 << 20)


def take_much(ledger: str, number: int, much: bytes) -> int:
    with alone(ledger, number):
        assert len(much) == 1 << 20
        return answer(number)


def write_garbage(ledger: str, number: int) -> int:
    with alone(ledger, number):
        os.write(1, hashlib.shake_128(b"%d" % number).digest(1 << 14))
        os.write(2, bytes(1 << 12) + b"\xff\xfe\n\r\x1b[2J")
        print("\udcff no text at all", number)
        return answer(number)


def close_low_descriptors(ledger: str, number: int) -> int:
    with alone(ledger, number):
        pass
    os.closerange(3, 256)
    return answer(number)


def close_streams(ledger: str, number: int) -> int:
    with alone(ledger, number):
        sys.stdout.close()
        os.close(1)
        os.close(2)
        return answer(number)


def replace_handlers(ledger: str, number: int) -> int:
    with alone(ledger, number):
        for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(each, signal.SIG_IGN)
        return answer(number)


def leave_child(ledger: str, number: int) -> int:
    """Leave a process behind: it goes with its worker."""
    with alone(ledger, number):
        pass
    if os.fork() == 0:
        linger()
    return answer(number)


def leave_daemon(ledger: str, number: int) -> int:
    """As `leave_child`, forked twice into a session of its own."""
    with alone(ledger, number):
        pass
    fork_daemon()
    return answer(number)


def leave_session(ledger: str, number: int) -> int:
    """Leave a program behind, in a session of its own and in an environment that tells nothing of us."""
    with alone(ledger, number):
        subprocess.Popen(["sleep", LINGERING], start_new_session=True, env={})
        return answer(number)


def compute_in_thread(number: int) -> int:
    time.sleep(0.001 * (number % 5))
    return answer(number)


async def compute_on_loop(number: int) -> int:
    await asyncio.sleep(0.001 * (number % 5))
    return answer(number)


# --- guilty: each ends as it deserves ---


def linger() -> None:
    """Sleep until killed, deaf to all else; never returns."""
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


def hang_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hang()


def hang_in_c() -> None:
    """Hold the GIL all the while."""
    ctypes.PyDLL(None).sleep(60)


def hang_with_daemon() -> None:
    fork_daemon()
    hang()


def hang_in_new_session() -> None:
    """The worker leads a session, so only a child may call setsid; the worker waits for it for ever."""
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
    """The worker's socket among them: nobody will ever hear of this job again."""
    os.closerange(0, 4096)
    hang()


def kill_own_group() -> None:
    os.killpg(0, signal.SIGKILL)


def fail() -> None:
    raise LookupError("on purpose")


def stick_in_thread() -> None:
    """Out of reach in C, for longer than its pool waits for it."""
    time.sleep(1.0)


def spin_in_thread() -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        time.sleep(0.01)


async def hang_on_loop() -> None:
    await asyncio.sleep(60)


async def refuse_to_end_on_loop() -> None:
    """Swallow the cancellation, and stay for longer than its pool waits for it."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(1.0)
