"""A small server that tests share as they do Prefect's: its keeper, and a test that uses it until it is interrupted.

python -m tests.unit.kept_server FOLDER
SHARED=FOLDER python -m pytest tests/unit/kept_server.py
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.servers import free_port, running
from tests.shared_server import keep, shared
from tests.waiting import wait_for


def test_use() -> None:
    """The file `used` has the URL of the server while a test uses it."""
    folder = Path(os.environ["SHARED"])
    with shared(folder, "tests.unit.kept_server") as url:
        (folder / f"used by {os.getppid()}").write_text(url)
        time.sleep(3600)


@contextmanager
def serving() -> Iterator[str]:
    """Run a server in a new folder, and yield its URL."""
    with tempfile.TemporaryDirectory(prefix="kept-server-") as name:
        folder, port = Path(name), free_port()
        command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
        with running(command, env=dict(os.environ), cwd=folder, log=folder / "log"):
            wait_for(lambda: answers(port))
            yield f"http://127.0.0.1:{port}"


def answers(port: int) -> bool:
    """Return whether somebody listens at the port."""
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port))):
        return True
    return False


if __name__ == "__main__":
    keep(Path(sys.argv[1]), serving)
