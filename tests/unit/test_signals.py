"""The signal watch: which signals notify its listeners. Each case runs in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import os, signal, sys, threading, time
from executor_adapter.executor.of_process import ending_handlers, signal_watch

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
heard = []
signalled = threading.Event()

def listener(number):
    heard.append(number.name)
    signalled.set()

def kill(number):
    try:
        os.kill(os.getpid(), number)
        time.sleep(0.2)
    except KeyboardInterrupt:
        pass
"""


def run(code: str) -> str:
    """Run a program, which must exit with code 0 within 30 s, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_listeners_are_notified_while_the_main_thread_is_busy() -> None:
    """A listener is notified while the main thread is in C code that no handler interrupts."""
    code = """
        import ctypes
        c = ctypes.CDLL(None)
        held = ctypes.create_string_buffer(64)  # A mutex of C, for which the main thread waits until the listener came.
        c.pthread_mutex_lock(held)
        def listen(number):
            listener(number)
            c.pthread_mutex_unlock(held)
        signal_watch.listen(listen)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            c.pthread_mutex_lock(held)
            time.sleep(3600)
        except KeyboardInterrupt:
            print(heard)
    """
    assert run(code) == "['SIGINT']"


def test_a_program_that_handles_a_signal_itself_keeps_its_jobs() -> None:
    """A signal with a handler of the program's own does not end its jobs."""
    code = """
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal_watch.listen(listener)
        kill(signal.SIGINT), kill(signal.SIGTERM)
        print(heard, signal_watch.ended_by)
    """
    assert run(code) == "[] None"


def test_a_handler_that_is_known_to_end_the_program_ends_its_jobs() -> None:
    """A handler that `ending_handlers` recognises ends the jobs."""
    code = """
        def quit(*_): raise KeyboardInterrupt
        signal.signal(signal.SIGTERM, quit)
        ending_handlers.append(lambda number, handler: handler is quit)
        signal_watch.listen(listener)
        kill(signal.SIGTERM)
        signalled.wait()
        print(heard, signal_watch.ended_by.name)
    """
    assert run(code) == "['SIGTERM'] SIGTERM"


def test_asyncio_run_ends_at_an_interrupt_and_so_do_its_jobs() -> None:
    """SIGINT under `asyncio.run` ends the program and its jobs."""
    code = """
        import asyncio
        async def main():
            signal_watch.listen(listener)
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(10)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            pass
        signalled.wait()
        print(heard)
    """
    assert run(code) == "['SIGINT']"


def test_other_signals_end_nothing() -> None:
    """Signals other than SIGTERM and SIGINT notify no listener."""
    code = """
        signal.signal(signal.SIGUSR1, signal.default_int_handler)
        signal_watch.listen(listener)
        kill(signal.SIGUSR1)
        print(heard)
    """
    assert run(code) == "[]"


def test_an_earlier_wakeup_fd_is_written_to_and_restored() -> None:
    """An earlier wake-up fd gets the bytes too, and is restored with the last listener."""
    code = """
        import asyncio
        async def main():
            loop, came = asyncio.get_running_loop(), asyncio.Event()
            loop.add_signal_handler(signal.SIGUSR1, came.set)
            signal_watch.listen(listener)
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.wait_for(came.wait(), 5)
                came.clear()
            signal_watch.leave(listener)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(came.wait(), 5)
            loop.remove_signal_handler(signal.SIGUSR1)
            while threading.active_count() > 1:
                await asyncio.sleep(0.01)
            print(signal.set_wakeup_fd(-1))
        asyncio.run(main())
    """
    assert run(code) == "-1"


def test_a_wakeup_fd_that_was_set_later_stays() -> None:
    """A wake-up fd that other code set later stays set."""
    code = """
        signal_watch.listen(listener)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        signal_watch.leave(listener)
        print(signal.set_wakeup_fd(-1) == writer)
    """
    assert run(code) == "True"


def test_a_forked_process_keeps_its_signals_to_itself() -> None:
    """A signal to a forked process does not end the jobs of its parent."""
    code = """
        import warnings
        warnings.simplefilter("ignore")  # of forking beside a thread
        def quit(*_): os._exit(0)
        signal.signal(signal.SIGTERM, quit)
        ending_handlers.append(lambda number, handler: handler is quit)
        signal_watch.listen(listener)
        if not (child := os.fork()):
            print(signal.set_wakeup_fd(-1), flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        os.waitpid(child, 0)
        time.sleep(0.2)
        print(heard)
    """
    assert run(code) == "-1\n[]"


def test_listening_in_another_thread_waits_for_the_main_thread() -> None:
    """A listener of another thread is notified once the main thread has set the wake-up fd."""
    code = """
        thread = threading.Thread(target=signal_watch.listen, args=(listener,))
        thread.start(), thread.join()
        kill(signal.SIGINT)
        print(heard)
        signal_watch.arm()
        kill(signal.SIGINT)
        signalled.wait()
        print(heard)
    """
    assert run(code) == "[]\n['SIGINT']"


def test_an_interrupt_of_our_own_raises_in_the_main_thread_and_ends_no_jobs() -> None:
    """`interrupt_main_thread` raises in the main thread and does not notify executors."""
    code = """
        signal_watch.listen(listener)
        threading.Timer(0.2, signal_watch.interrupt_main_thread, (signal.SIGINT,)).start()
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            print("interrupted")
        time.sleep(0.2)
        print(heard)
    """
    assert run(code) == "interrupted\n[]"
