"""Functions that leave something behind in their worker, and one that describes the state of the worker."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import locale
import logging
import logging.config
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any


def describe_state() -> dict[str, Any]:
    """Return what a function may rely on, in a form that can be compared."""
    children = subprocess.run(["false"], check=False).returncode
    print("from the job", flush=True)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        os.write(writer, b"x")
        broken_pipe = "written"
    except BrokenPipeError:
        broken_pipe = "raised"
    os.close(writer)
    root = logging.getLogger()
    with warnings.catch_warnings():
        error = None
        try:
            warnings.warn("a warning", ResourceWarning, stacklevel=1)
        except ResourceWarning as raised:
            error = str(raised)
    return {
        "returncode of false": children,
        "broken pipe": broken_pipe,
        "timers": [signal.getitimer(which) for which in (0, 1, 2)],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "handlers": [_name(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "wakeup": signal.set_wakeup_fd(-1),
        "logging": (root.level, len(root.handlers), root.disabled, logging.root.manager.disable, len(root.filters)),
        "disabled loggers": [name for name in _LOGGERS if logging.getLogger(name).disabled],
        "record factory": logging.getLogRecordFactory().__name__,
        "streams": [
            (stream.encoding, stream.errors, stream.line_buffering, stream.write_through, stream.closed)
            for stream in (sys.stdout, sys.stderr)
        ],
        "descriptors": [os.readlink(f"/proc/self/fd/{number}").split(":")[0] for number in (0, 1, 2)],
        "blocking": [os.get_blocking(number) for number in (1, 2)],
        "stdin": (sys.stdin.read(1), sys.stdin is sys.__stdin__),
        "folder": os.getcwd(),
        "umask": _umask(),
        "limits": [resource.getrlimit(number) for number in _LIMITS],
        "niceness": os.nice(0),
        "cpus": sorted(os.sched_getaffinity(0)),
        "user": os.getuid(),
        "recursion": sys.getrecursionlimit(),
        "trace": (sys.gettrace() is None, sys.getprofile() is None),
        "gc": (gc.isenabled(), gc.get_threshold()),
        "timeout": socket.getdefaulttimeout(),
        "locale": locale.setlocale(locale.LC_ALL),
        "environment": {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
        "timezone": time.tzname,
        "path": list(sys.path),
        "warning": error,
        "faulthandler": faulthandler.is_enabled(),
        "switch": sys.getswitchinterval(),
    }


_LOGGERS = ("executor_adapter.job", "asyncio")
_LIMITS = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_STACK, resource.RLIMIT_CPU)


def _name(handler: Any) -> str:
    return getattr(handler, "__qualname__", repr(handler))


def _umask() -> int:
    now = os.umask(0o022)
    os.umask(now)
    return now


def changing_functions() -> dict[str, Any]:
    """Return what the functions are by which Python code changes its process, and the class of its environment."""
    modules = (faulthandler, gc, locale, logging, os, resource, signal, socket, sys, threading)
    named = {f"{module.__name__}.{name}": value for module in modules for name, value in vars(module).items()}
    functions = {name: value for name, value in named.items() if callable(value) and not isinstance(value, type)}
    functions = {name: value for name, value in functions.items() if not name.endswith("hook")}  # pytest sets its own.
    return {name: _where_defined(value) for name, value in functions.items()} | {"class": type(os.environ).__qualname__}


def _where_defined(function: Any) -> tuple[str, str | None]:
    return type(function).__name__, getattr(getattr(function, "__code__", None), "co_filename", None)


def nothing() -> None:
    pass


# --- what is left behind ---


def _alarm() -> None:
    signal.alarm(1)


def _timers() -> None:
    for which, number in ((0, signal.SIGALRM), (1, signal.SIGVTALRM), (2, signal.SIGPROF)):
        signal.signal(number, _raise)
        signal.setitimer(which, 0.5, 0.5)


def _raise(*_: Any) -> None:
    raise LookupError("a handler that a job left behind")


def _traceback_later() -> None:
    faulthandler.dump_traceback_later(0.5, exit=True)


def _mask() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    os.kill(os.getpid(), signal.SIGUSR1)


def _handlers() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)


def _sigpipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _wakeup() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(writer)
    os.close(reader)


def _logging() -> None:
    logging.basicConfig(force=True, level=logging.CRITICAL, handlers=[logging.NullHandler()])
    logging.disable(logging.CRITICAL)
    logging.getLogger().addFilter(lambda record: False)
    logging.setLogRecordFactory(_record)
    logging.captureWarnings(capture=True)


def _record(*args: Any, **kwargs: Any) -> logging.LogRecord:
    return logging.LogRecord(*args, **kwargs)


def _logging_by_dictionary() -> None:
    logging.config.dictConfig({"version": 1, "root": {"level": "ERROR", "handlers": []}})


def _logging_handler() -> None:
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.CRITICAL)


def _duplicated_descriptors() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)


def _file_as_input() -> None:
    file = os.open(__file__, os.O_RDONLY)
    os.dup2(file, 0)


def _streams() -> None:
    sys.stdout.reconfigure(encoding="ascii", errors="strict", line_buffering=False)  # type: ignore[union-attr]
    sys.stderr.reconfigure(newline="\r\n", write_through=True)  # type: ignore[union-attr]


def _replaced_streams() -> None:
    sys.stdin = sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _closed_streams() -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.close()
        os.closerange(0, 3)


def _not_blocking() -> None:
    for number in (1, 2):
        os.set_blocking(number, False)


def _folder() -> None:
    os.chdir("/")
    os.umask(0o000)


def _soft_limits() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _hard_limits() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _values() -> None:
    sys.setrecursionlimit(123)
    sys.setprofile(_trace)
    sys.settrace(_trace)
    gc.disable()
    gc.set_threshold(1, 1, 1)
    socket.setdefaulttimeout(0.001)
    sys.setswitchinterval(1.0)


def _trace(*_: Any) -> None:
    return None


def _environment() -> None:
    os.environ["LEFT_BEHIND"] = "1"
    os.environb[b"PATH"] = b"/nowhere"
    os.environ.pop("HOME", None)
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()


def _new_environment() -> None:
    os.environ = {}  # type: ignore[assignment]  # noqa: B003


def _locale() -> None:
    locale.setlocale(locale.LC_ALL, "C")
    for wanted in ("C.UTF-8", "POSIX"):
        try:
            locale.setlocale(locale.LC_CTYPE, wanted)
        except locale.Error:
            continue
        return


def _path() -> None:
    sys.path.insert(0, "/nowhere")
    sys.path = list(sys.path)  # type: ignore[misc]


def _warnings() -> None:
    warnings.filters = list(warnings.filters)  # type: ignore[misc]
    warnings.simplefilter("error")


def _faulthandler() -> None:
    faulthandler.disable()


def _niceness() -> None:
    os.nice(3)


def _cpus() -> None:
    os.sched_setaffinity(0, {0})


def _user() -> None:
    if os.getuid() == 0:
        os.setresuid(65534, 65534, 65534)


def _event_loop() -> None:
    async def add_handler() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, nothing)

    asyncio.run(add_handler())


_NOT_LEFT = ("_name", "_umask", "_raise", "_record", "_trace", "_where_defined")

LEFT: dict[str, Callable[[], None]] = {
    name.removeprefix("_"): function
    for name, function in list(globals().items())
    if name.startswith("_") and callable(function) and name not in _NOT_LEFT
}


def leave(name: str) -> int:
    """Leave one thing behind; return the worker's pid."""
    pid = os.getpid()
    LEFT[name]()
    return pid


def leave_variable() -> str | None:
    """Leave a variable behind; return what an earlier call has left."""
    found = os.environ.get("LEFT_BEHIND")
    os.environ["LEFT_BEHIND"] = "1"
    return found


def leave_variable_slowly() -> str | None:
    """Do what `leave_variable` does in a call that takes a millisecond."""
    time.sleep(0.001)
    return leave_variable()


def leave_alarm(seconds: float) -> None:
    """Let an exception be raised in the worker about when the function has returned."""
    signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def initialize() -> None:
    """Change the process as an initializer may, and as some of its modules do when they are imported."""
    os.environ["INITIALIZED"] = "1"
    os.umask(0o027)
    sys.setrecursionlimit(4321)
    signal.signal(signal.SIGUSR1, _raise)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    signal.setitimer(signal.ITIMER_REAL, 3600, 1800)
    logging.getLogger().addHandler(logging.NullHandler())
    warnings.simplefilter("ignore", ResourceWarning)


def describe_initialized() -> list[Any]:
    """Return what `initialize` has changed."""
    return [
        os.environ.get("INITIALIZED"),
        _umask(),
        sys.getrecursionlimit(),
        _name(signal.getsignal(signal.SIGUSR1)),
        _name(signal.getsignal(signal.SIGTERM)),
        sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        signal.getitimer(signal.ITIMER_REAL)[1],
        [type(handler).__name__ for handler in logging.getLogger().handlers],
        warnings.filters[0][:3:2],
    ]


def leave_all() -> int:
    """Leave everything behind, except what has the worker replaced or might end it before it returns."""
    for name, function in LEFT.items():
        if name not in ("user", "hard_limits", "traceback_later", "closed_streams"):
            function()
    return os.getpid()
