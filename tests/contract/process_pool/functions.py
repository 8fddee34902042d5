"""Functions of process jobs: well-behaved ones, ones that fail or crash, and ones that are hard to end."""

from __future__ import annotations

import contextlib
import ctypes
import enum
import functools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from executor_adapter import current_job
from executor_adapter.worker.process_tree import children

# --- that fail or crash ---


def crash() -> None:
    ctypes.string_at(0)


def exit_at_once() -> None:
    os._exit(3)


def exit_in_c() -> None:
    ctypes.CDLL(None).exit(4)


def exit_in_python() -> None:
    sys.exit(5)


def fail() -> None:
    raise LookupError("on purpose")


class FailsOnPickling:
    """Calls `act` when it is pickled."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __reduce__(self) -> tuple[Any, ...]:
        self.act()
        return (FailsOnPickling, (self.act,))


class FailsOnUnpickling:
    """Calls `act` when it is unpickled."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.act = act

    def __reduce__(self) -> tuple[Any, ...]:
        return _act_and_make, (self.act,)


def _act_and_make(act: Callable[[], Any]) -> FailsOnUnpickling:
    act()
    return FailsOnUnpickling(act)


def accept(*_: Any) -> str:
    return "accepted"


def run(act: Callable[[], Any]) -> None:
    act()


def return_fails_on_pickling(act: Callable[[], Any]) -> FailsOnPickling:
    return FailsOnPickling(act)


def return_fails_on_unpickling(act: Callable[[], Any]) -> FailsOnUnpickling:
    return FailsOnUnpickling(act)


class UnloadableError(Exception):
    """Can be pickled, but not unpickled: its class needs another number of arguments."""

    error_code = "RATE_LIMITED"

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class OddText(str):
    __slots__ = ()


class OddNumber(enum.IntEnum):
    TWENTY = 20


def log_odd_values() -> None:
    extra = {"text": OddText("a"), "number": OddNumber.TWENTY, "flag": True}
    logging.getLogger("collector").log(OddNumber.TWENTY, OddText("odd"), extra=extra)
    current_job().progress(OddNumber.TWENTY, 30, OddText("half"))


def log_odd_place() -> str:
    """Log a record whose time and place are of a class of its own."""
    place = dict.fromkeys(("created", "pathname", "lineno", "funcName"), OddNumber.TWENTY)
    fields = {"name": "collector", "levelno": logging.WARNING, "msg": "odd"}
    logging.getLogger("collector").handle(logging.makeLogRecord(fields | place))
    return "logged"


def raise_unloadable() -> None:
    raise UnloadableError("hold", "on")


# --- that are well-behaved ---


def add(left: int, right: int) -> int:
    return left + right


def pid() -> int:
    return os.getpid()


async def add_later(left: int, right: int) -> int:
    return left + right


def echo(value: Any) -> Any:
    return value


def announce(path: str, text: str = "") -> None:
    """Write the text, or the pid, to the path at once, so that a reader never sees a part of it."""
    Path(path + ".new").write_text(text or str(os.getpid()))
    os.rename(path + ".new", path)


def nap(seconds: float, path: str | None = None) -> float:
    if path is not None:
        announce(path)
    time.sleep(seconds)
    return seconds


def large_bytes(size: int, once_there: str | None = None) -> bytes:
    while once_there is not None and not Path(once_there).exists():
        time.sleep(0.002)
    return bytes(size)


def overwrite(array: Any) -> Any:
    array += 1
    return array


def hold_memory(size: int, seconds: float) -> int:
    held = bytearray(os.urandom(1 << 16)) * (size >> 16)
    time.sleep(seconds)
    return len(held)


_kept: list[bytearray] = []


def keep_memory(size: int) -> None:
    """Keep memory in the interpreter after the job."""
    _kept.append(bytearray(os.urandom(1 << 16)) * (size >> 16))


def leave_holder(size: int) -> None:
    """Leave a process that holds memory after the job."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        keep_memory(size)
        os.write(writer, b"x")
        time.sleep(60)
        os._exit(0)
    os.read(reader, 1)
    os.close(reader)
    os.close(writer)


def describe() -> tuple[Any, ...]:
    job = current_job()
    return job.job_id, job.attempt, job.tool_name, job.metadata, job.remaining, job.checkpoint_value


@contextlib.contextmanager
def noting(path: str, _: object) -> Iterator[None]:
    Path(path).write_text(f"entered for {current_job().job_id}")
    yield
    Path(path).write_text("left")


def read(path: str) -> str:
    return Path(path).read_text()


def environment_of_worker() -> dict[str, Any]:
    return {
        "session": os.getsid(0),
        "pid": os.getpid(),
        "stdin": sys.stdin.read(),
        "modules": sorted(sys.modules),
        "nice": os.nice(0),
        "cpus": os.sched_getaffinity(0),
        "random": _random_number(),
    }


def _random_number() -> float | None:
    numpy = sys.modules.get("numpy")
    return None if numpy is None else float(numpy.random.random())


def remember(value: str) -> None:
    os.environ["PROCESS_POOL_TEST"] = value


def remembered() -> str | None:
    return os.environ.get("PROCESS_POOL_TEST")


# --- that report something ---


def print_and_log(name: str) -> None:
    print("printed", name)
    os.write(1, b"raw to 1\n")
    os.write(2, b"raw to 2\n")
    subprocess.run(["echo", "from a child"], check=True)
    print("no end", name, end="")
    logging.getLogger("collector").info("logged %s", name, extra={"page": 3, "thing": object()})


def warn(text: str) -> None:
    logging.getLogger("collector").info("begins")
    logging.getLogger("collector").warning("%s", text)


def report_progress(count: int) -> None:
    for done in range(1, count + 1):
        current_job().progress(done, count, f"page {done}")


def save_checkpoint(value: Any) -> None:
    current_job().checkpoint(value)


def send_event(kind: str, content: Any) -> None:
    current_job().send(kind, content)


def send_and_log(path: str, text: str) -> None:
    """Log the text behind an event that hangs where another process unpickles it, before the file exists."""
    current_job().send("page", FailsOnUnpickling(functools.partial(wait_elsewhere, os.getpid(), path)))
    logging.getLogger("collector").info(text)


def wait_elsewhere(pid: int, path: str) -> None:
    """Wait for the file, but not in the process of this pid: a worker unpickles what it sends, to check it."""
    while os.getpid() != pid and not Path(path).exists():
        time.sleep(0.002)


def print_lines(lines: int) -> None:
    for number in range(lines):
        print("line", number)


def write_garbage() -> str:
    os.write(1, os.urandom(1 << 20))
    os.write(2, bytes(1 << 20))
    return "wrote"


def write_and_crash() -> None:
    print("last words")
    crash()


# --- that harm their worker ---


def close_low_descriptors() -> str:
    os.closerange(3, 256)
    return "closed"


def close_all_descriptors() -> str:
    os.closerange(0, 4096)
    return "closed"


def fall_silent(path: str) -> None:
    """Close all descriptors, the worker's socket among them, and stay alive."""
    os.closerange(0, 4096)
    announce(path)
    time.sleep(60)


def close_streams() -> str:
    sys.stdout.close()
    os.close(1)
    os.close(2)
    return "closed"


def replace_handlers() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)


def fork_and_return() -> int:
    return os.fork()


# --- that are hard to end ---


def hold_gil(seconds: int, path: str | None = None) -> None:
    if path is not None:
        announce(path)
    ctypes.PyDLL(None).sleep(seconds)


def wait_for_file(path: str) -> None:
    while not Path(path).exists():
        time.sleep(0.001)


def ignore_sigterm(path: str, seconds: float) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    announce(path)
    time.sleep(seconds)


def clean_up_at_end(path: str) -> None:
    try:
        announce(path, "started")
        time.sleep(3600)
    finally:
        Path(path).write_text("cleaned")


def check_cancelled(path: str) -> str:
    assert not current_job().cancelled
    announce(path, "started")
    while not current_job().cancelled:
        time.sleep(0.005)
    Path(path).write_text("saw it")
    return "ended by itself"


def stop_self(path: str) -> None:
    announce(path)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(3600)


def leave_daemon(path: str, then: Callable[[], Any] | None = None) -> None:
    """Fork a daemon with a session of its own, write its pid, then call `then` or wait."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            announce(path)
            time.sleep(60)
        os._exit(0)
    while not Path(path).exists():
        time.sleep(0.002)
    if then is None:
        time.sleep(60)
    else:
        then()


def leave_program(path: str, then: Callable[[], Any] | None = None) -> None:
    """Start a program in a session and an environment of its own, write its pid, then call `then` or wait."""
    program = subprocess.Popen(["sleep", "60"], start_new_session=True, env={})
    announce(path, str(program.pid))
    if then is None:
        time.sleep(60)
    else:
        then()


def leave_another_users(path: str) -> None:
    """Leave a process of another user, write its pid, and crash."""
    if os.fork() == 0:
        os.setsid()
        os.setuid(65534)
        time.sleep(60)
        os._exit(0)
    (left,) = children(os.getpid())
    while f"Uid:\t{65534}" not in Path(f"/proc/{left}/status").read_text():
        time.sleep(0.002)
    announce(path, str(left))
    crash()


def catch_soft_timeout(path: str) -> str:
    try:
        announce(path)
        time.sleep(3600)
    except Exception as error:
        return type(error).__name__
    return "slept"


def fail_to_initialize() -> None:
    raise RuntimeError("the initializer's own")


def nap_and_return_pid(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()
