"""Finds CPython's own tests of `concurrent.futures`."""

from __future__ import annotations

import importlib
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE

OTHER_INTERPRETERS = ("python3.14", "python3.13", "python3.12", "/usr/bin/python3")
SUITE = "test_concurrent_futures"


def find_suite() -> Path | None:
    """Return the folder `test` of this interpreter's library, or of another one's, that has the tests of executors.

    Distributions of Python leave them out, or have a package for them.
    """
    for library in libraries():
        if (library / "test" / SUITE / "executor.py").is_file():
            return library / "test"
    return None


def libraries() -> Iterator[Path]:
    yield Path(sysconfig.get_path("stdlib"))
    for interpreter in OTHER_INTERPRETERS:
        command = [interpreter, "-c", "import sysconfig; print(sysconfig.get_path('stdlib'))"]
        try:
            yield Path(
                subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.strip()
            )
        except (OSError, subprocess.SubprocessError):
            continue


def import_suite(folder: Path, link_in: Path) -> Callable[[str], Any]:
    """Return a function that imports a module of the tests. `link_in`: an empty folder, added to `sys.path`.

    All of the package `test` comes from `folder`, here and in worker processes, which get the path of this one.
    """
    (link_in / "test").symlink_to(folder)
    sys.path.insert(0, str(link_in))
    return lambda module: importlib.import_module(f"test.{SUITE}.{module}")


class FileEvent:
    """An event that can be pickled: it is set once its file exists."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self) -> None:
        self._path.touch()

    def wait(self, timeout: float = 60.0) -> bool:
        ends = time.monotonic() + timeout
        while not self._path.exists() and time.monotonic() < ends:
            time.sleep(0.005)
        return self._path.exists()
