"""Functions of the jobs of the cluster tests, importable on a node."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from executor_adapter.config import load_config

TOUCH = """
import os, sys, time
open(sys.argv[1], "w").close()
while True:
    os.utime(sys.argv[1])
    time.sleep(0.01)
"""


def parent_of_agent() -> int:
    """Return the pid of the agent that runs this function: the parent of the guardian of its worker."""
    return _parent(os.getppid())


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def note_times(folder: str, seconds: float, job: int = 0) -> int:
    """Write the agent's pid, and then the time over and over, as long as it runs; a child of its own does so too."""
    name = f"{time.monotonic():.6f}-{os.getpid()}-{job}"
    agent = parent_of_agent()
    # No shell: it would start two programs each time.
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", TOUCH, f"{folder}/{name}.child"])
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with Path(folder, name).open("a") as file:
            file.write(f"{agent} {time.monotonic()}\n")
        time.sleep(0.005)
    child.kill()
    child.wait()
    return agent


def warn(name: str, text: str) -> str:
    """Log a warning with the text, and return the text."""
    logging.getLogger(name).warning(text)
    return text


def size_of(value: bytes) -> int:
    """Return the number of bytes of an argument."""
    return len(value)


def zeros(size: int) -> bytes:
    """Return a large value."""
    return bytes(size)


def wait_for_file(path: str) -> None:
    """Return when the file exists."""
    while not Path(path).exists():
        time.sleep(0.01)


def size_once_there(path: str, value: bytes) -> int:
    """Return the number of bytes of the value when the file exists."""
    wait_for_file(path)
    return len(value)


def work(number: int, seconds: float) -> int:
    """Return the number after so many seconds."""
    time.sleep(seconds)
    return number


def work_alone(number: int, seconds: float, folder: str) -> int:
    """Do the same, and add a mark to the job's file: "." for a run, "!" for one while another of the job is alive."""
    with Path(folder, str(number)).open("ab", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # It ends with this process.
        except BlockingIOError:
            file.write(b"!")
        else:
            file.write(b".")
        time.sleep(seconds)
    return number


def reversed_bytes(value: bytes) -> bytes:
    """Return another value of the same size."""
    return value[::-1]


def sizes_of(values: list[bytes], more: bytes) -> list[int]:
    """Return the sizes of several values."""
    return [len(value) for value in [*values, more]]


def read_settings() -> str:
    """Read the settings as an executor in a job does, and return one of them."""
    return load_config().executor.start_method


def gpus_until(path: str) -> tuple[str | None, float, float]:
    """Wait for a file; return the GPUs that this process sees, and when this function began and ended."""
    began = time.monotonic()
    wait_for_file(path)
    return os.environ.get("CUDA_VISIBLE_DEVICES"), began, time.monotonic()
