"""A worker: one process that runs one call at a time, and reports each to its host before it starts the next.

It has its own session (`killpg` reaches what it starts), is a child subreaper (`process_tree`), is killed by the kernel
when the guardian dies, reads nothing from the terminal, and writes stdout and stderr into pipes that the host reads.

**Tickets.** Host and worker share an eventfd that is used as a semaphore, or a pipe (`spawned`); eight bytes that are
read are one ticket. The host adds a ticket for each call that it sends, and the worker takes one before it starts each
call. Taking is atomic in the kernel. So a host that takes tickets back knows, even while a function holds the GIL, that
the calls it sent last will not start; and the tickets that a dead worker left show how many calls it had not started. A
worker with calls but no ticket waits for either.

**Signals.** SIGTERM asks the function to end. A function that has checked `current_job().cancelled` is expected to
return by itself; in any other, SystemExit is raised, so that its `finally` and `with` blocks run. Afterwards the worker
exits. A function that catches the exception, or is stuck in C code, is killed when the grace period is over. A handler
that the function installed itself takes precedence, and is removed after the call.
INTERRUPT raises SoftTimeoutError in the function and logs the stack that it interrupts. SIGINT is ignored.

A process that the function forks inherits none of this: neither socket nor tickets, and default signal handlers.
Processes that a function leaves running end with the worker, not with the call.

**State.** What a function changes in the process is put back before a call of another one (see `state`). A worker in
which that is impossible exits, and is replaced: its tickets show that the calls it has were not started.

The worker is forked from the guardian, so it needs the standard library alone.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import importlib
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

from executor_adapter.worker import wire
from executor_adapter.worker.call import EXIT_TERMINATED, CallRunner, Functions, ReceivedCall, decode_function
from executor_adapter.worker.reporter import Channel, WorkerReporter
from executor_adapter.worker.state import COMPARE_SECONDS, ProcessState
from executor_adapter.worker.stdio import PeakMemory, Stdio, move_up

INTERRUPT = signal.SIGRTMAX - 3 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR2
"""The signal that raises SoftTimeoutError in the function; chosen because few programs use it."""

EXIT_SETUP_FAILED = 70
"""Exit code of a worker whose set-up or initializer failed."""

_OOM_SCORE_RAISE, _MAX_OOM_SCORE = 500, 1000
"""Half of the memory counts as used by the process in addition, see proc_pid_oom_score_adj(5)."""

_OWN_SIGNALS = frozenset({signal.SIGTERM, INTERRUPT})
"""The signals that the worker needs, whatever an initializer does with them."""


def main(fds: list[int], setup: dict[str, Any], begin: Callable[[int], None] = lambda tickets: None) -> int:
    """Serve the host until it closes the socket. Return the exit code.

    `fds`: the worker's ends of socket, tickets, stdout and stderr. `setup`: see `pools.process.handle`.
    `begin`: called with the descriptor of the tickets once what is logged goes to the host.
    """
    socket_fd, ticket_fd, stdout_fd, stderr_fd = fds
    stdio = Stdio(move_up(stdout_fd), move_up(stderr_fd), move_up(os.open(os.devnull, os.O_RDONLY)))
    faulthandler.enable(file=stdio.stderr_fd)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # A host with a blocked signal would hand that on.
    sock = socket.socket(fileno=move_up(socket_fd))
    tickets = move_up(ticket_fd)
    worker = Worker(sock, tickets, stdio, setup["log_level"])
    begin(tickets)
    for fd in setup["presence"]:
        _hold_presence(fd)
    _become_preferred_victim()
    _apply_settings(setup)
    worker.serve()
    _run_exit_handlers()
    return 0


def preload(names: tuple[str, ...], report: Callable[[str], object]) -> None:
    """Import modules before the first job, so that the import does not count towards its limits.

    A module that cannot be imported is reported; the function that needs it fails.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            report(f"cannot preload {name}: {traceback.format_exc(limit=-1)}")


def _hold_presence(fd: int) -> None:
    """Keep the host's presence while this process lives, but not in processes that a function forks."""
    held = move_up(fd)
    os.register_at_fork(after_in_child=lambda: os.close(held))


def _become_preferred_victim() -> None:
    """Let the kernel prefer this process, and what it starts, to its host when it kills for lack of memory."""
    # Other systems have no such file; in a sandbox it may be read-only.
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        raised = min(int(file.read()) + _OOM_SCORE_RAISE, _MAX_OOM_SCORE)
        file.seek(0)
        file.write(str(raised))


def _apply_settings(setup: dict[str, Any]) -> None:
    if setup["nice"]:
        os.nice(setup["nice"])
    if setup["cpu_affinity"]:
        os.sched_setaffinity(0, setup["cpu_affinity"])
    random = sys.modules.get("numpy.random")
    if random is not None:
        # Python reseeds its own generator in a forked process; numpy's would give the same numbers in each worker.
        random.seed()
    if setup["initializer"] is not None:
        decode_function(setup["initializer"])()


def _run_exit_handlers() -> None:
    """Do what the interpreter does at its end that the functions of this worker may rely on; `os._exit` skips it.

    The calls that a worn worker has start elsewhere only when it has ended, so this may take no longer than it may in a
    worker that the host has asked to exit.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(wire.EXIT_SECONDS)
    atexit._run_exitfuncs()  # noqa: SLF001  no public function runs them
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


class Worker:
    """Receives calls, runs them one by one, and sends the results."""

    def __init__(self, sock: socket.socket, ticket_fd: int, stdio: Stdio, log_level: int) -> None:
        self._socket = sock
        self._tickets = ticket_fd
        self._stdio = stdio
        self._memory = PeakMemory()
        self._reader = wire.FrameReader(sock, bytearray(1 << 18))
        self._channel = Channel(sock)
        self._reporter = WorkerReporter(self._channel, log_level)
        self._functions: Functions = {}
        self._calls: deque[ReceivedCall] = deque()
        self._end_requested = False
        self._runner: CallRunner | None = None
        self._output_unread = False
        self._last_function = 0
        self._install_handlers()
        os.register_at_fork(after_in_child=self._detach)

    # --- calls ---

    def serve(self) -> None:
        """Run calls until the host closes the socket."""
        self._install_own_handlers()
        self._state = ProcessState(_OWN_SIGNALS, self._stdio)
        self._channel.send(wire.HEADER.pack(0, wire.READY, 0, 0, 0, os.getpid(), time.monotonic(), 0.0))
        while (call := self._next_call()) is not None:
            self._answer(call)

    def _answer(self, call: ReceivedCall) -> None:
        state = self._state
        runner = self._runner = CallRunner(call, self._functions, self._reporter, state.note_imports)
        if self._end_requested:
            runner.request_end()
        self._last_function = call.function
        self._state.is_compared, self._state.modules = False, len(sys.modules)
        started = time.monotonic()
        try:
            kind, flags, body, file = runner.run()
            ended = time.monotonic()
            flags |= self._stdio.flush()
            if ended - started >= COMPARE_SECONDS and not runner.end_requested:
                state.restore()
        except BaseException as error:  # A signal handler that the function left behind has raised.
            state.restore()
            (kind, flags, body, file), ended = runner.failure(error), time.monotonic()
            flags |= self._stdio.flush()
        self._runner = None
        self._reporter.finish()
        if runner.end_requested:
            # The host waits for this process to exit. It knows the outcome already, or would receive it too late.
            os._exit(EXIT_TERMINATED)
        peak = self._memory.take(ended - started)
        header = wire.HEADER.pack(len(body), kind, flags, 0, call.seq, peak, started, ended)
        self._channel.send(header + body, None if file is None else file.fd)
        self._output_unread = bool(flags & wire.HAS_OUTPUT)

    def _next_call(self) -> ReceivedCall | None:
        """Return the next call that there is a ticket for.

        Return None when the host has closed the socket, or no further function must run here.
        """
        calls, state = self._calls, self._state
        try:
            while not state.is_worn:
                if not calls or self._output_unread:
                    self._receive()
                elif calls[0].function != self._last_function and not state.is_compared:
                    state.restore()  # Before it takes the ticket: where the worker must exit then, no call is lost.
                elif self._take_ticket():
                    return calls.popleft()
                elif self._wait_for_frames():
                    self._receive()
        except (EOFError, ConnectionError):
            pass
        return None

    def _take_ticket(self) -> bool:
        self._end_requested = False  # The host ends only calls whose ticket was taken, so this was for an earlier one.
        try:
            return bool(os.read(self._tickets, 8))  # A pipe of tickets has an end, once the host has died.
        except BlockingIOError:
            return False

    def _wait_for_frames(self) -> bool:
        """Wait for a frame or a ticket. Return True if there is a frame."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        poll.register(self._tickets, select.POLLIN)
        return any(fd != self._tickets for fd, _ in poll.poll())

    def _receive(self) -> None:
        for kind, flags, number, seq, word, first, _, body in self._reader.read():
            if kind == wire.CALL:
                fd = move_up(self._reader.fds.popleft()) if flags & wire.IN_FILE else -1
                self._calls.append(ReceivedCall(flags, number, seq, word, first, body, fd))
            elif kind == wire.FUNCTION:
                if flags & wire.FORGET_OTHERS:
                    self._functions.clear()
                self._functions[word] = body
            elif kind == wire.PATH:
                self._state.restore()
                sys.path[:], managers_key = pickle.loads(body)
                self._state.note()
                if managers_key is not None:
                    _know_managers(managers_key)
            elif kind == wire.DROP:
                self._drop(seq)
            elif kind == wire.OUTPUT_READ:
                self._output_unread = False

    def _drop(self, seq: int) -> None:
        """Discard the call numbered `seq` and all later ones."""
        while self._calls and self._calls[-1].seq >= seq:
            call = self._calls.pop()
            if call.fd >= 0:
                os.close(call.fd)
            if call.flags & wire.USE_ONCE:
                self._functions.pop(call.function, None)
        self._channel.send(wire.HEADER.pack(0, wire.DROPPED, 0, 0, 0, 0, 0.0, 0.0))

    # --- signals ---

    def _install_handlers(self) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Not SIG_IGN, which programs that the function starts would inherit.
        signal.signal(signal.SIGINT, lambda *_: None)
        self._install_own_handlers()

    def _install_own_handlers(self) -> None:
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(INTERRUPT, self._on_interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OWN_SIGNALS)

    def _on_terminate(self, _: int, frame: FrameType | None) -> None:
        runner = self._runner
        if runner is None:
            self._end_requested = True
        else:
            position, raises = runner.position(frame, source=False), runner.request_end()
            self._channel.run_between_frames(lambda: self._end_function(position, raises=raises))

    def _end_function(self, position: str, *, raises: bool) -> None:
        if self._runner is not None and self._runner.interruptible:
            self._reporter.emit("position", position)
            if raises:
                raise SystemExit(EXIT_TERMINATED)

    def _on_interrupt(self, _: int, frame: FrameType | None) -> None:
        position = "" if self._runner is None else self._runner.position(frame, source=True)
        self._channel.run_between_frames(lambda: self._raise_soft_timeout(position))

    def _raise_soft_timeout(self, position: str) -> None:
        if self._runner is not None and self._runner.interruptible:
            self._reporter.log("the function passed its soft_timeout here:\n" + position)
            self._runner.pass_soft_timeout()

    def _detach(self) -> None:
        """Release everything of the worker in a process that the function forked."""
        self._channel.detach()
        os.close(self._tickets)
        for number in (signal.SIGTERM, signal.SIGINT, INTERRUPT):
            signal.signal(number, signal.SIG_DFL)


def _know_managers(key: bytes) -> None:
    """Let proxies of the host's multiprocessing managers connect to them from here."""
    import multiprocessing.process  # Only here, because most workers do not need it.

    multiprocessing.process.current_process().authkey = key
