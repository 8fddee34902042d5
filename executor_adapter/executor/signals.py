"""Notifies executors of SIGTERM and SIGINT at once, whatever the main thread is doing.

Python runs a signal handler in the main thread, when that thread gets to it, and an exception that the handler raises
has to pass everything that waits there, such as a task runner that waits for running tasks. So a thread of its own
reads the pipe that `signal.set_wakeup_fd` writes to, sleeps until there is a signal, and notifies the executors.

**The program decides what a signal means.** The signal ends the jobs if its handler is one that ends the program: the
default handler of SIGINT, that of `asyncio.run`, and those that `ending_handlers` recognises. A program with a handler
of its own decides for itself, and shuts its executors down if it wants to. Without any handler the signal kills the
process, and the guardian ends its workers.

Only the main thread may set the wake-up fd. Executors that are made or entered there set it, and flows that run there;
each sets it again, because other code may have replaced it (`loop.add_signal_handler` does). Bytes are passed on to the
fd that was set before, which is restored when the last executor is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
OWN_SIGNAL_SECONDS = 1.0
"""Seconds after `interrupt_main_thread` in which a signal counts as the one that it sent."""

Listener = Callable[[signal.Signals], object]

ending_handlers: list[Callable[[signal.Signals, Any], bool]] = []
"""Functions that return whether a handler, their second argument, is one that ends the program."""


def ends_program(number: signal.Signals) -> bool:
    """Return whether the current handler of this signal ends the program."""
    handler = signal.getsignal(number)
    return (
        handler is signal.default_int_handler
        or _is_asyncio_handler(handler)
        or any(ends(number, handler) for ends in ending_handlers)
    )


def _is_asyncio_handler(handler: Any) -> bool:
    """Return whether this is the handler that `asyncio.run` sets for SIGINT, which cancels the main task."""
    return isinstance(handler, functools.partial) and isinstance(
        getattr(handler.func, "__self__", None), asyncio.Runner
    )


class SignalWatch:
    """Reads the wake-up pipe and notifies listeners. There is one per process."""

    def __init__(self) -> None:
        self.ended_by: signal.Signals | None = None
        """The signal that is ending the program; None again once the program continues anyway."""
        self.first: list[Listener] = []
        """Called before all other listeners, for good: they find out why the signal came, and may take a second."""
        self._lock = threading.RLock()  # Re-entrant: a signal handler may close an executor while its thread holds it.
        self._listeners: list[Listener] = []
        self._pipe: tuple[int, int] | None = None
        self._previous = -1
        self._own_until = 0.0
        os.register_at_fork(after_in_child=self._forget)

    def listen(self, listener: Listener) -> None:
        """Call `listener(signal)`, on the watch's thread, when a signal ends the program."""
        with self._lock:
            self._listeners.append(listener)
        self.arm()

    def leave(self, listener: Listener) -> None:
        """Stop calling this listener."""
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)
        self.disarm()

    def arm(self) -> None:
        """Set the wake-up fd and forget an earlier signal: the program runs. Does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        with self._lock:
            self.ended_by = None
            pipe = self._pipe or self._open()
            with contextlib.suppress(ValueError):  # A subinterpreter has no signals.
                previous = signal.set_wakeup_fd(pipe[1], warn_on_full_buffer=False)
                if previous != pipe[1]:
                    self._previous = previous

    def _open(self) -> tuple[int, int]:
        self._pipe = reader, writer = os.pipe()
        os.set_blocking(writer, False)
        threading.Thread(target=self._read, args=(reader,), name="executor-signals", daemon=True).start()
        return self._pipe

    def disarm(self) -> None:
        """Restore the earlier fd if there is no listener left. Does nothing outside the main thread."""
        if self._listeners or self._pipe is None or threading.current_thread() is not threading.main_thread():
            return
        with self._lock, contextlib.suppress(ValueError):
            pipe, self._pipe = self._pipe, None
            found = signal.set_wakeup_fd(self._previous)
            if found == pipe[1]:
                os.close(pipe[1])  # The thread reads the end of the pipe, and ends.
            else:
                # Other code has set its own fd since, and may restore ours: ours must stay open.
                signal.set_wakeup_fd(found)
            self._previous = -1

    def interrupt_main_thread(self, *choices: signal.Signals) -> bool:
        """Send the main thread the first of these signals whose handler ends the program; executors are not notified.

        Return False where none of them has such a handler.
        """
        for number in filter(ends_program, choices):
            self._own_until = time.monotonic() + OWN_SIGNAL_SECONDS
            signal.pthread_kill(threading.main_thread().ident or 0, number)
            return True
        return False

    def _read(self, reader: int) -> None:
        while written := os.read(reader, 4096):
            if self._previous >= 0:
                with contextlib.suppress(OSError):
                    os.write(self._previous, written)
            for number in ENDING.intersection(written):
                if ends_program(number) and time.monotonic() > self._own_until:
                    self._notify(signal.Signals(number))
        os.close(reader)

    def _notify(self, number: signal.Signals) -> None:
        with self._lock:
            self.ended_by = number
            listeners = [*self.first, *self._listeners]
        for listener in listeners:
            listener(number)

    def _forget(self) -> None:
        """Stop using the pipe in a forked process: the parent reads it, and the signals here are not its own."""
        self._lock = threading.RLock()
        self._listeners.clear()
        if self._pipe is None:
            return
        reader, writer = self._pipe
        self._pipe = None
        with contextlib.suppress(ValueError):
            found = signal.set_wakeup_fd(self._previous)
            if found != writer:
                signal.set_wakeup_fd(found)
        self._previous = -1
        os.close(reader)
        os.close(writer)


signal_watch = SignalWatch()
