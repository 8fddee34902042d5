"""A worker: one process that runs one call at a time, and tells its host of each before it begins the next.

It has its own session (`killpg` reaches what it starts), is a child subreaper (`process_tree`), is killed by the kernel
when the guardian dies, reads nothing from the terminal, and writes stdout and stderr into pipes that the host reads.

**Tickets.** Host and worker share one eventfd, a semaphore. The host adds a ticket for each call that it sends; the
worker takes one before it begins each. Taking is atomic in the kernel, so a host that takes tickets back knows, even
while a function holds the GIL, that the calls it sent last will not begin; and the tickets that a dead worker left
tell how many calls it had not begun. A worker with calls and no ticket waits for either.

**Signals.** SIGTERM asks the function to end. One that has looked at `current_job().cancelled` is left to end by
itself; in any other, SystemExit is raised, so that its `finally` and `with` blocks run. When it has ended the worker
exits. Whoever catches that, or sits in C code, is killed when the grace is over. A handler of the function's own has
precedence, and is removed after it.
INTERRUPT raises SoftTimeoutError in the function and logs the stack it interrupts. SIGINT is ignored.

A process that the function forks gets none of this: neither socket nor tickets, and default signals. Processes that a
function leaves running are not ended with its call, but with the worker.

It is forked from the guardian, so it needs the standard library alone.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal's own makes two enums a call
import atexit
import faulthandler
import fcntl
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

from executor_adapter.exceptions import SoftTimeoutError
from executor_adapter.worker import wire
from executor_adapter.worker.call import TERMINATED, Attempt, Call, Functions
from executor_adapter.worker.reporter import Channel, Voice
from executor_adapter.worker.stdio import Memory, Stdio

INTERRUPT = signal.SIGRTMAX - 3 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
"""Asks the function to end by SoftTimeoutError: a signal that nobody else is likely to use."""

FAILED_TO_START = 70
"""Exit code of a worker whose set-up or initializer failed."""

_SIGTERM = int(signal.SIGTERM)
_HIGH = 512
"""Our descriptors are moved above this number, out of the way of functions that close all low ones."""


def main(
    fds: list[int], setup: dict[str, Any], make: Callable[[socket.socket, int, Stdio, int], Worker] | None = None
) -> int:
    """Serve the host until it closes the socket; the exit code.

    `fds`: the worker's ends of socket, tickets, stdout and stderr. `setup`: see `launcher.Guardian`.
    """
    socket_fd, ticket_fd, stdout_fd, stderr_fd = fds
    stdio = Stdio(_raise(stdout_fd), _raise(stderr_fd))
    faulthandler.enable(file=stdio.stderr_fd)
    worker = (make or Worker)(socket.socket(fileno=_raise(socket_fd)), _raise(ticket_fd), stdio, setup["log_level"])
    for fd in setup["presence"]:
        _hold(fd)
    _apply(setup)
    worker.serve()
    _leave()
    return 0


def _hold(presence: int) -> None:
    """Have the host count as there while this process is; not while those are that a function forks."""
    held = _raise(presence)
    os.register_at_fork(after_in_child=lambda: os.close(held))


def _raise(fd: int) -> int:
    """Move a descriptor up, where there is room for it."""
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        return fd
    os.close(fd)
    return high


def _apply(setup: dict[str, Any]) -> None:
    if setup["nice"]:
        os.nice(setup["nice"])
    if setup["cpu_affinity"]:
        os.sched_setaffinity(0, setup["cpu_affinity"])
    random = sys.modules.get("numpy.random")
    if random is not None:
        # Python reseeds its own generator in a forked process; numpy's would give the same numbers in each worker.
        random.seed()
    if setup["initializer"] is not None:
        Functions().decode(setup["initializer"])()


def _leave() -> None:
    """What the interpreter does at its end, as far as it concerns the functions that ran here."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


class Worker:
    def __init__(self, sock: socket.socket, ticket_fd: int, stdio: Stdio, log_level: int) -> None:
        self._socket = sock
        self._tickets = ticket_fd
        self._stdio = stdio
        self._memory = Memory()
        self._reader = wire.FrameReader(sock, bytearray(1 << 18))
        self._channel = Channel(sock)
        self._voice = Voice(self._channel, log_level)
        self._functions = Functions()
        self._calls: deque[Call] = deque()
        self._told_to_end = False
        self._attempt: Attempt | None = None
        self._unheard = False
        self._take_signals()
        os.register_at_fork(after_in_child=self._let_go)

    # --- calls ---

    def serve(self) -> None:
        self._channel.send(wire.HEADER.pack(0, wire.READY, 0, 0, 0, os.getpid(), time.monotonic(), 0.0))
        while (call := self._next()) is not None:
            self._answer(call)

    def _answer(self, call: Call) -> None:
        attempt = self._attempt = Attempt(call, self._functions, self._voice)
        if self._told_to_end:
            attempt.ask_to_end()
        started = time.monotonic()
        kind, flags, body, file = attempt.run()
        self._attempt = None
        self._voice.finish()
        flags |= self._stdio.settle()
        if attempt.asked_to_end:
            # Its host waits for its death; what a result would say is known, or comes too late.
            os._exit(TERMINATED)
        ended = time.monotonic()
        peak = self._memory.peak()
        header = wire.HEADER.pack(len(body), kind, flags, 0, call.seq, peak, started, ended)
        self._channel.send(header + body, None if file is None else file.fd)
        self._unheard = bool(flags & wire.OUTPUT)
        self._take_signals()

    def _next(self) -> Call | None:
        """The next call that there is a ticket for; None when the host has closed the socket."""
        calls = self._calls
        try:
            while True:
                if not calls or self._unheard:
                    self._receive()
                elif self._take_ticket():
                    return calls.popleft()
                elif self._wait_for_frames():
                    self._receive()
        except (EOFError, ConnectionError):
            return None

    def _take_ticket(self) -> bool:
        self._told_to_end = False  # the host asks only for the end of what has its ticket
        try:
            os.eventfd_read(self._tickets)
        except BlockingIOError:
            return False
        return True

    def _wait_for_frames(self) -> bool:
        """Wait for a frame or a ticket; whether it is a frame."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(self._tickets, select.POLLIN)
        return any(fd != self._tickets for fd, _ in poll.poll())

    def _receive(self) -> None:
        for kind, flags, number, seq, word, first, _, body in self._reader.read():
            if kind == wire.CALL:
                fd = _raise(self._reader.fds.popleft()) if flags & wire.IN_FILE else -1
                self._calls.append(Call(flags, number, seq, word, first, body, fd))
            elif kind == wire.FUNCTION:
                self._functions.add(word, body, forget=bool(flags & wire.FORGET))
            elif kind == wire.PATH:
                sys.path[:] = pickle.loads(body)
            elif kind == wire.DROP:
                self._drop(seq)
            elif kind == wire.HEARD:
                self._unheard = False

    def _drop(self, seq: int) -> None:
        while self._calls and self._calls[-1].seq >= seq:
            call = self._calls.pop()
            call.drop()
            if call.flags & wire.ONCE:
                self._functions.remove(call.function)
        self._channel.send(wire.HEADER.pack(0, wire.DROPPED, 0, 0, 0, 0, 0.0, 0.0))

    # --- signals ---

    def _take_signals(self) -> None:
        """Have our handlers in place; a function may have set its own."""
        if _signal.getsignal(_SIGTERM) != self._on_terminate:
            signal.signal(signal.SIGTERM, self._on_terminate)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # Not SIG_IGN, which programs that the function starts would inherit.
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.signal(INTERRUPT, self._on_interrupt)

    def _on_terminate(self, *_: Any) -> None:
        if self._attempt is None:
            self._told_to_end = True
        elif self._attempt.ask_to_end():
            self._channel.when_free(self._raise_exit)

    def _raise_exit(self) -> None:
        if self._attempt is not None and self._attempt.armed:
            raise SystemExit(TERMINATED)

    def _on_interrupt(self, _: int, frame: FrameType | None) -> None:
        stack = "".join(traceback.format_stack(frame))
        self._channel.when_free(lambda: self._raise_soft_timeout(stack))

    def _raise_soft_timeout(self, stack: str) -> None:
        if self._attempt is not None and self._attempt.armed:
            self._voice.log("the function passed its soft_timeout here:\n" + stack)
            raise SoftTimeoutError("soft_timeout passed")

    def _let_go(self) -> None:
        """In a process that the function forked: it is no worker."""
        self._channel.abandon()
        os.close(self._tickets)
        for number in (signal.SIGTERM, signal.SIGINT, INTERRUPT):
            signal.signal(number, signal.SIG_DFL)
