"""Functions of the jobs of a stress run. Each notes in the journal when it begins and ends. Importable in a worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from executor_adapter import current_job
from executor_adapter.exceptions import DataCollectionException, JobError

LINGERING = "86398"
"""Seconds that a process sleeps that a job leaves: far longer than any run, so that one that is left is found."""


def submit_nothing(name: str) -> Any:
    return None


submit_child: Callable[[str], Any] = submit_nothing
"""Submits one more job for the job of this name, and returns its future, or None where it is refused; the program sets
it, so that jobs in its own process can."""


def note(journal: str, *words: object) -> None:
    """Add a line to the journal in one write, so that the lines of many processes do not mix."""
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(file)


@contextlib.contextmanager
def noted(journal: str, name: str) -> Iterator[int]:
    """Note the begin and the end of an attempt; yields its number."""
    attempt = current_job().attempt
    note(journal, "begin", name, attempt)
    yield attempt
    note(journal, "end", name, attempt)


def value_of(name: str) -> str:
    """Return what every job that completes returns."""
    return f"value of {name}"


def answer(journal: str, name: str) -> str:
    with noted(journal, name):
        return value_of(name)


def nap(journal: str, name: str, seconds: float) -> str:
    with noted(journal, name):
        time.sleep(seconds)
        return value_of(name)


def flaky(journal: str, name: str, fails: int) -> str:
    with noted(journal, name) as attempt:
        if attempt <= fails:
            raise ConnectionError(f"attempt {attempt} of {name}")
        return value_of(name)


def refuse(journal: str, name: str) -> str:
    with noted(journal, name):
        raise DataCollectionException(f"{name} has no data", error_code="DATA_ERROR")


def be_rate_limited(journal: str, name: str, fails: int) -> str:
    with noted(journal, name) as attempt:
        if attempt <= fails:
            raise DataCollectionException("slow down", error_code="RATE_LIMITED", retry_after=0.03)
        return value_of(name)


def report(journal: str, name: str, steps: int) -> str:
    with noted(journal, name):
        for step in range(steps):
            current_job().progress(step, steps, name)
            current_job().logger.info("step %d", step)
            print("printed at step", step)
            time.sleep(0.002)
        return value_of(name)


def count_in_checkpoints(journal: str, name: str, fails: int) -> str:
    with noted(journal, name):
        done = (current_job().checkpoint_value or 0) + 1
        current_job().checkpoint(done)
        if done <= fails:
            raise ConnectionError(f"only {done} of {name}")
        return value_of(name)


def crash(journal: str, name: str, fails: int) -> str:
    with noted(journal, name) as attempt:
        if attempt <= fails:
            os._exit(3)
        return value_of(name)


def hang(journal: str, name: str) -> str:
    with noted(journal, name):
        for _ in range(3000):
            time.sleep(0.01)
        return "never stopped"


def be_stubborn(journal: str, name: str) -> str:
    """Go on for a second whatever is raised here, so that a thread has to be abandoned."""
    with noted(journal, name):
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            with contextlib.suppress(BaseException):
                time.sleep(0.01)
        return value_of(name)


def give_much(journal: str, name: str) -> str:
    """Return a value that a process sends in a memory file."""
    with noted(journal, name):
        return value_of(name) + " " * 400_000


def take_much(journal: str, name: str, much: str) -> str:
    with noted(journal, name):
        assert len(much) == 400_000
        return value_of(name)


def return_unpicklable(journal: str, name: str) -> object:
    with noted(journal, name):
        return threading.Lock()


def raise_local_class(journal: str, name: str) -> str:
    class LocalError(Exception):
        def __reduce__(self) -> str:
            raise RuntimeError("not even this")

    with noted(journal, name):
        raise LocalError(name)


def exit_as_program(journal: str, name: str) -> str:
    with noted(journal, name):
        raise SystemExit(4)


def interrupt(journal: str, name: str) -> str:
    with noted(journal, name):
        raise KeyboardInterrupt


def leave_process(journal: str, name: str) -> str:
    """Leave a process behind, which ends with its worker."""
    with noted(journal, name):
        subprocess.Popen(["sleep", LINGERING], start_new_session=True)
        return value_of(name)


def submit_one_more(journal: str, name: str) -> str:
    with noted(journal, name):
        submit_child(name)
        return value_of(name)


def wait_for_one_more(journal: str, name: str) -> str:
    with noted(journal, name):
        if (future := submit_child(name)) is not None:
            future.exception()
        return value_of(name)


def log_much(journal: str, name: str) -> str:
    with noted(journal, name):
        for line in range(50):
            logging.getLogger("stress").info("line %d of %s", line, name)
        return value_of(name)


# --- on an event loop ---


async def answer_on_loop(journal: str, name: str) -> str:
    with noted(journal, name):
        return value_of(name)


async def nap_on_loop(journal: str, name: str, seconds: float) -> str:
    with noted(journal, name):
        await asyncio.sleep(seconds)
        return value_of(name)


async def flaky_on_loop(journal: str, name: str, fails: int) -> str:
    with noted(journal, name) as attempt:
        await asyncio.sleep(0)
        if attempt <= fails:
            raise ConnectionError(f"attempt {attempt} of {name}")
        return value_of(name)


async def refuse_on_loop(journal: str, name: str) -> str:
    with noted(journal, name):
        raise DataCollectionException(f"{name} has no data", error_code="DATA_ERROR")


async def hang_on_loop(journal: str, name: str) -> str:
    with noted(journal, name):
        await asyncio.sleep(30)
        return "never stopped"


async def be_stubborn_on_loop(journal: str, name: str) -> str:
    """Swallow the first cancellation, and go on for a second."""
    with noted(journal, name):
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        return value_of(name)


async def report_on_loop(journal: str, name: str, steps: int) -> str:
    with noted(journal, name):
        for step in range(steps):
            current_job().progress(step, steps, name)
            await asyncio.sleep(0.002)
        return value_of(name)


async def wait_for_one_more_on_loop(journal: str, name: str) -> str:
    with noted(journal, name):
        if (future := submit_child(name)) is not None:
            with contextlib.suppress(JobError):
                await future
        return value_of(name)


async def submit_one_more_on_loop(journal: str, name: str) -> str:
    with noted(journal, name):
        submit_child(name)
        return value_of(name)


def prepare_worker(text: str) -> None:
    """Initialise a worker process."""
    os.environ["STRESS_WORKER"] = text
