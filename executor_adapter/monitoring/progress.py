"""Progress bars on the terminal: how many jobs are done, of how many, how fast, how many failed, what is waited for.

All bars of a program share one display at the bottom of the terminal; what the program prints or logs meanwhile stands
above it. Without a terminal, as in a pipe, there are no bars but a plain line now and then. Both go to stderr.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, Self, cast

from rich.console import Console, Group
from rich.file_proxy import FileProxy
from rich.live import Live

from executor_adapter.terminal import SafeConsole, SafeText, escaped

FIRST_WORD = 2.0
"""Seconds after which a plain line says what is waited for."""
PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines, where nothing ends."""
REFRESHES = 5.0
"""Redraws of the bars in a second."""
MIN_BAR, MAX_BAR = 5, 30
"""Columns of a bar; where there are fewer, it is left out."""
MIN_TITLE = 10
"""Columns of a title, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressCounts:
    """Counts jobs for a bar."""

    done: int = 0
    """Jobs that ended, failed ones too."""
    failed: int = 0
    """Jobs that failed or were cancelled."""
    total: int | None = None
    """All jobs; None where it is not known."""
    note: str = ""
    """What is waited for, where it is not the jobs."""


class ProgressBar:
    """Shows counts while its `with` block runs, and one line about them when it ends.

    `title` says what runs. `read` returns the counts; it is called several times a second, on another thread.
    `summary=False`: nothing is printed at the end.
    """

    def __init__(self, title: str, read: Callable[[], ProgressCounts], *, summary: bool = True) -> None:
        self.title = title
        self._read = read
        self._summary = summary
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        _display.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        _display.remove(self, self.plain() if self._summary else None)

    def plain(self) -> str:
        """Return the line for a pipe: `fetch: 120 of 500 done, 3 failed, 41/s, 2.9 s`."""
        counts, seconds = self._read(), self._seconds()
        return f"{self.title}: {', '.join(filter(None, (_done(counts), *_rest(counts, seconds))))}"

    def line(self, width: int) -> SafeText:
        """Return the line for a terminal that has `width` columns."""
        counts, seconds = self._read(), self._seconds()
        rest = SafeText("  ").append(_done(counts))
        for part in _rest(counts, seconds):
            rest.append("  ").append(part, style="red" if part.endswith("failed") else "dim")
        text = SafeText(escaped(self.title), no_wrap=True, overflow="ellipsis")
        text.truncate(max(MIN_TITLE, min(width // 3, width - rest.cell_len - MIN_BAR - 3)), overflow="ellipsis")
        columns = min(MAX_BAR, width - text.cell_len - rest.cell_len - 3)
        if counts.total and columns >= MIN_BAR:
            full = round(columns * min(1.0, counts.done / counts.total))
            text.append("  ").append("━" * full, style="cyan").append("━" * (columns - full), style="dim")
        return text.append(rest)

    def _seconds(self) -> float:
        return time.monotonic() - self._began


def _done(counts: ProgressCounts) -> str:
    if counts.total is not None:
        return f"{counts.done:,} of {counts.total:,} done"
    return f"{counts.done:,} done" if counts.done or not counts.note else ""


def _rest(counts: ProgressCounts, seconds: float) -> Iterator[str]:
    if counts.failed:
        yield f"{counts.failed:,} failed"
    if counts.done and seconds > 0:
        rate = counts.done / seconds
        yield f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 1 else f"{rate * 60:.1f}/min"
        if counts.total is not None and counts.total > counts.done:
            yield f"{_clock((counts.total - counts.done) / rate)} left"
    if counts.note:
        yield escaped(counts.note)
    yield _clock(seconds)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02}"


class _Display:
    """Draws all bars that are shown now. Each starts it where it is the first, and stops it where it was the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bars: list[ProgressBar] = []
        self._live: contextlib.ExitStack | None = None
        self._console: Console = SafeConsole()
        self._plain_ended = threading.Event()

    def add(self, bar: ProgressBar) -> None:
        with self._lock:
            self._bars = [*self._bars, bar]
            if len(self._bars) == 1:
                self._start()

    def remove(self, bar: ProgressBar, summary: str | None) -> None:
        with self._lock:
            self._bars = [other for other in self._bars if other is not bar]
            if not self._bars:
                self._stop()
            if summary is not None:
                self._print(summary)

    def _start(self) -> None:
        # Made for each display, because a program may have redirected stderr since.
        self._console = SafeConsole(stderr=True, soft_wrap=True)
        if not self._console.is_terminal:
            self._plain_ended = threading.Event()
            threading.Thread(target=self._print_plain, args=(self._plain_ended,), name="progress", daemon=True).start()
            return
        self._live = contextlib.ExitStack()
        live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=REFRESHES,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        # Drawn before a job can print: rich would write what another thread prints meanwhile into the first bar.
        live.start(refresh=True)
        self._live.callback(live.stop)
        self._live.enter_context(_logging_above(self._console))

    def _stop(self) -> None:
        self._plain_ended.set()
        if self._live is not None:
            self._live.close()
            self._live = None

    def _render(self) -> Group:
        width, shown = self._console.width, self._bars[-max(1, self._console.height // 2) :]
        return Group(*(bar.line(width) for bar in shown))

    def _print_plain(self, ended: threading.Event) -> None:
        wait = FIRST_WORD
        while not ended.wait(wait):
            wait = PLAIN_INTERVAL
            for bar in self._bars:
                self._print(bar.plain())

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # The reader of stderr has left, or it is closed.
            self._console.print(text)


@contextlib.contextmanager
def _logging_above(console: Console) -> Iterator[None]:
    """Let handlers of `logging` that write to the terminal write above the bars."""
    with contextlib.ExitStack() as restored:
        for handler in _handlers():
            rich_console = getattr(handler, "console", None)
            if isinstance(rich_console, Console) and _is_terminal(rich_console.file):
                restored.callback(setattr, rich_console, "file", rich_console.file)
                rich_console.file = cast("IO[str]", FileProxy(console, rich_console.file))
            elif isinstance(handler, logging.StreamHandler) and _is_terminal(handler.stream):
                restored.callback(handler.setStream, handler.stream)
                handler.setStream(FileProxy(console, handler.stream))
        yield


def _handlers() -> Iterator[logging.Handler]:
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        yield from getattr(logger, "handlers", ())


def _is_terminal(stream: IO[Any]) -> bool:
    try:
        return stream.isatty() and not isinstance(stream, FileProxy)
    except (AttributeError, ValueError):
        return False


_display = _Display()
