"""A real terminal: a tmux pane on a tmux server of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import ROOT
from tests.waiting import PATIENCE

COMMAND = f"{shlex.quote(sys.executable)} -m executor_adapter.cli"

needs_tmux = pytest.mark.skipif(
    shutil.which("tmux") is None and os.environ.get("CI") != "true", reason="no tmux: apt-get install tmux"
)


class Terminal:
    """One pane with a plain shell in it."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    def type(self, text: str) -> None:
        """Type a line and Enter."""
        self._tmux("send-keys", "-t", "pane", "-l", text)
        self._tmux("send-keys", "-t", "pane", "Enter")

    def run(self, words: str) -> None:
        """Type an `executor-adapter` command and Enter."""
        self.type(f"executor-adapter {words}")

    def press(self, key: str) -> None:
        """Press one key, as tmux names it."""
        self._tmux("send-keys", "-t", "pane", key)

    def screen(self, *, colours: bool = False) -> str:
        """Return what the screen shows now."""
        return self._tmux("capture-pane", "-p", "-t", "pane", *(["-e"] if colours else []))

    def history(self) -> str:
        """Return all that the terminal has shown and kept, what has scrolled off the screen too."""
        return self._tmux("capture-pane", "-p", "-S", "-", "-t", "pane")

    def wait_for(self, condition: str | Callable[[str], object]) -> str:
        """Wait for a screen that contains a text or fulfils a condition, and return it.

        A screen is captured while it is painted, so the next one is returned if it holds too.
        """
        holds = (lambda text: condition in text) if isinstance(condition, str) else condition
        ends = time.monotonic() + PATIENCE
        while time.monotonic() < ends:
            shown = self.screen()
            time.sleep(0.05)
            if holds(shown):
                painted = self.screen()
                return painted if holds(painted) else shown
        raise AssertionError(f"not within {PATIENCE:.0f} s: {condition}; the screen:\n{self.screen()}")

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *words], capture_output=True, text=True, check=True, timeout=PATIENCE
        )
        return done.stdout


@contextmanager
def terminal(directory: Path, *, columns: int = 150, lines: int = 40) -> Iterator[Terminal]:
    """Start a shell in `directory` where `executor-adapter` is this checkout's; end it with its tmux server."""
    socket = str(directory / "tmux")
    (directory / "rc").write_text(
        f'PS1="ready> "\nexport PYTHONPATH={shlex.quote(str(ROOT))}\n'
        f'python() {{ {shlex.quote(sys.executable)} "$@"; }}\n'
        f'executor-adapter() {{ {COMMAND} "$@"; }}\n'
    )
    start = ["tmux", "-S", socket, "-f", "/dev/null", "new-session", "-d", "-s", "pane"]
    start += ["-x", str(columns), "-y", str(lines), f"bash --noprofile --rcfile {shlex.quote(str(directory / 'rc'))}"]
    subprocess.run(start, check=True, cwd=directory, timeout=PATIENCE, env=os.environ | {"TERM": "xterm-256color"})
    try:
        pane = Terminal(socket)
        pane.wait_for("ready>")
        yield pane
    finally:
        subprocess.run(["tmux", "-S", socket, "kill-server"], check=False, timeout=PATIENCE, capture_output=True)
