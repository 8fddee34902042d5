"""SIGTERM and SIGINT, heard at once by those who own jobs, whatever the main thread is doing.

Python calls a signal's handler in the main thread, when that comes to it, and an exception it raises passes whatever
waits there: a task runner that waits for what runs, for example. So one thread, which sleeps until there is a signal,
reads the pipe to which `signal.set_wakeup_fd` has it written, and tells the executors.

**What a signal means** is the program's to say. It ends the jobs where its handler is one that ends the program: the
default one of SIGINT, that of `asyncio.run`, and those that `ending_handlers` knows. One that has a handler of its
own decides for itself, and ends its executors if it means to. Without any handler the process is gone, and the guardian
ends its workers.

Only the main thread may set the wake-up fd, so it is set by executors that are made or entered there, and by flows that
run there; again by each, since somebody may have taken it away (`loop.add_signal_handler` does). Bytes are passed on to
the fd that was set before, which is put back when the last executor is closed.
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
OWN_SECONDS = 1.0

Listener = Callable[[signal.Signals], object]

ending_handlers: list[Callable[[signal.Signals, Any], bool]] = []
"""Each says whether a handler (the second argument) is one that ends the program."""


def ends_program(number: signal.Signals) -> bool:
    """Whether the handler of this signal, as it is now, is one that ends the program."""
    handler = signal.getsignal(number)
    return (
        handler is signal.default_int_handler
        or _is_asyncios(handler)
        or any(knows(number, handler) for knows in ending_handlers)
    )


def _is_asyncios(handler: Any) -> bool:
    """Whether it is the one that `asyncio.run` sets for SIGINT, which cancels the main task."""
    return isinstance(handler, functools.partial) and isinstance(
        getattr(handler.func, "__self__", None), asyncio.Runner
    )


class SignalWatch:
    """The pipe, and who is told. One for the process."""

    def __init__(self) -> None:
        self.ended_by: signal.Signals | None = None
        """The signal by which the program was told to end; None again once it goes on all the same."""
        self._lock = threading.RLock()  # re-entrant: a signal's handler may close an executor while its thread is here
        self._listeners: list[Listener] = []
        self._pipe: tuple[int, int] | None = None
        self._previous = -1
        self._own_until = 0.0
        os.register_at_fork(after_in_child=self._forget)

    def listen(self, listener: Listener) -> None:
        """Have `listener(signal)` called, on a thread of the watch, when the program is told to end."""
        with self._lock:
            self._listeners.append(listener)
        self.arm()

    def leave(self, listener: Listener) -> None:
        """Call it no more."""
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)
        self.disarm()

    def arm(self) -> None:
        """The program goes on, or begins: be written to. Done by the main thread alone; elsewhere it does nothing."""
        if threading.current_thread() is not threading.main_thread():
            return
        with self._lock:
            self.ended_by = None
            if self._pipe is None:
                self._open()
            assert self._pipe is not None, "it was opened just now"
            with contextlib.suppress(ValueError):  # in a subinterpreter there are no signals
                previous = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
                if previous != self._pipe[1]:
                    self._previous = previous

    def _open(self) -> None:
        self._pipe = reader, writer = os.pipe()
        os.set_blocking(writer, False)
        threading.Thread(target=self._read, args=(reader,), name="executor-signals", daemon=True).start()

    def disarm(self) -> None:
        """Put the older fd back, if nobody listens any more. Done by the main thread alone, as `arm` is."""
        if self._listeners or self._pipe is None or threading.current_thread() is not threading.main_thread():
            return
        with self._lock, contextlib.suppress(ValueError):
            pipe, self._pipe = self._pipe, None
            found = signal.set_wakeup_fd(self._previous)
            if found == pipe[1]:
                os.close(pipe[1])  # the thread reads to the end, and ends
            else:
                # Somebody came later, and may put ours back: it must stay what it is.
                signal.set_wakeup_fd(found)
            self._previous = -1

    def interrupt_main_thread(self, *choices: signal.Signals) -> bool:
        """Send the main thread the first of these signals whose handler raises there; the executors go on.

        False where there is none.
        """
        for number in filter(ends_program, choices):
            self._own_until = time.monotonic() + OWN_SECONDS
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
                    self._tell(signal.Signals(number))
        os.close(reader)

    def _tell(self, number: signal.Signals) -> None:
        with self._lock:
            self.ended_by = number
            listeners = list(self._listeners)
        for listener in listeners:
            listener(number)

    def _forget(self) -> None:
        """In a forked process: its signals are none of the parent's, which reads the same pipe."""
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
