"""A real IPython kernel whose cells a test runs, as Jupyter does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import start_new_kernel

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


class CellError(Exception):
    """A cell raised; the message is its traceback."""


class Notebook:
    """Runs cells in a kernel, one after the other."""

    def __init__(self, client: BlockingKernelClient, interrupt: Callable[[], None]) -> None:
        self._client = client
        self._interrupt = interrupt

    def run(self, cell: str, *, interrupt_when: str | None = None) -> dict[str, Any]:
        """Run a cell; return what it displays last, by MIME type, with what it printed as "stdout".

        `interrupt_when`: interrupt the cell once it has printed this line.

        Raises:
            CellError: the cell raised.
        """
        shown: dict[str, Any] = {"stdout": ""}
        errors: list[str] = []

        def receive(message: dict[str, Any]) -> None:
            content = message["content"]
            match message["msg_type"]:
                case "execute_result" | "display_data":
                    shown.update(content["data"])
                case "stream":
                    shown["stdout"] += content["text"]
                    if content["text"].strip() == interrupt_when:
                        self._interrupt()
                case "error":
                    errors.extend(content["traceback"])

        self._client.execute_interactive(cell, timeout=PATIENCE, output_hook=receive, allow_stdin=False)
        if errors:
            raise CellError("\n".join(errors))
        return shown


@contextlib.contextmanager
def notebook(directory: Path, env: dict[str, str]) -> Iterator[Notebook]:
    """Start a kernel in `directory`, and end it."""
    env = {**os.environ, "IPYTHONDIR": str(directory / "ipython"), "PYTHONPATH": str(ROOT), **env}
    manager, client = start_new_kernel(env=env, cwd=str(directory))
    try:
        yield Notebook(client, manager.interrupt_kernel)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)
