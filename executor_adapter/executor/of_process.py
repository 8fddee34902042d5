"""What there is once for each process: the executors that are open, entered and made by default, and the signals.

**Signals are noticed at once.** Python runs a signal handler in the main thread, when that thread gets to it, and an
exception that the handler raises has to pass everything that waits there, such as a task runner that waits for running
tasks. So a thread of its own reads the pipe that `signal.set_wakeup_fd` writes to, sleeps until there is a signal, and
notifies the executors.

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
import atexit
import contextlib
import contextvars
import functools
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from executor_adapter.supervision.messages import program_output
from executor_adapter.supervision.supervisor import Supervisor

ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
OWN_SIGNAL_SECONDS = 1.0
"""Seconds after `interrupt_main_thread` in which a signal counts as the one that it sent."""

Listener = Callable[[signal.Signals], object]

ending_handlers: list[Callable[[signal.Signals, Any], bool]] = []
"""Functions that return whether a handler, their second argument, is one that ends the program."""


# --- entered executors ---

FindExecutor = Callable[[], Any]
"""Returns a JobExecutor. This module does not import that class: its module imports this one."""


class Entry(NamedTuple):
    """An executor that was entered, and the process in which that happened."""

    pid: int
    find: FindExecutor


EntryToken = contextvars.Token[Entry | None]

_current: contextvars.ContextVar[Entry | None] = contextvars.ContextVar("executor", default=None)


def enter_executor(find: FindExecutor) -> EntryToken:
    """Make `find()` the current executor from here on. It is called when a job first needs an executor."""
    return _current.set(Entry(os.getpid(), find))


def leave_executor(token: EntryToken) -> None:
    """Undo `enter_executor`. Does nothing in a context other than the one that entered."""
    with contextlib.suppress(ValueError):
        _current.reset(token)


def entered_executor() -> FindExecutor | None:
    """Return how to get the executor that was entered last; None where none was, or only before this process forked."""
    entry = _current.get()
    return entry.find if entry is not None and entry.pid == os.getpid() else None


# --- signals ---


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


# --- open executors ---

_open: set[Supervisor] = set()
"""Kept here because an executor may be garbage-collected before its jobs are finished."""


def track(executor: object, supervisor: Supervisor) -> None:
    """Close the supervisor when its executor is garbage-collected, on a signal that ends the program, and at exit."""
    _open.add(supervisor)
    supervisor.thread.on_released.append(functools.partial(_open.discard, supervisor))
    signal_watch.listen(supervisor.on_signal)
    supervisor.thread.on_closed.append(functools.partial(signal_watch.leave, supervisor.on_signal))
    drain = functools.partial(supervisor.close, cancel_pending=False, cancel_running=False)
    weakref.finalize(executor, drain).atexit = False


def stop_tracking(supervisor: Supervisor) -> None:
    """Do not wait for this supervisor when the interpreter exits."""
    _open.discard(supervisor)


@atexit.register
def drain_all() -> None:
    """Run all submitted jobs to their end before the interpreter exits, as concurrent.futures does."""
    for supervisor in list(_open):
        supervisor.close(cancel_pending=False, cancel_running=False)
    for supervisor in list(_open):
        supervisor.thread.wait()
    program_output.finish()


def _leave_to_parent() -> None:
    """Wait for nothing in a forked process: the supervisors run in the parent."""
    for supervisor in _open:
        supervisor.detach_after_fork()
    _open.clear()


os.register_at_fork(after_in_child=_leave_to_parent)


# --- the default executor ---


class DefaultExecutor:
    """Makes the executor of code that has entered none when that first needs one, and again after it was closed."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._executor: Any = None
        os.register_at_fork(after_in_child=self._leave_to_parent)

    def get(self) -> Any:
        """Return the executor."""
        with self._lock:
            # An executor that a signal has ended is not replaced: the program is ending, and nothing may start.
            if self._executor is None or (self._executor.is_closed and signal_watch.ended_by is None):
                self._executor = self._make()
            return self._executor

    def _leave_to_parent(self) -> None:
        """Forget the executor in a forked process: its threads run in the parent, which may have held the lock."""
        self._lock = threading.Lock()
        self._executor = None
