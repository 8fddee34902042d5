"""Tests what becomes of what functions print in worker processes, where no flow run's log receives it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import executor_adapter
from executor_adapter import Job, JobExecutor, Transition
from executor_adapter.config import ExecutorSettings, Settings
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError
from executor_adapter.pools.base import Assignment
from executor_adapter.supervision.messages import ProgramOutput, program_output
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

PROGRAM = """
import os, sys
from executor_adapter import Job, JobExecutor, Transition

def talk():
    print("from a job")
    os.system("echo from its child")
    print("to stderr", file=sys.stderr)

if __name__ == "__main__":
    print("before")
    with JobExecutor(2) as executor:
        executor.run(Job(function=talk, pool="process"))
        print("between")
        executor.submit(Job(function=print, args=("late",), pool="process"))
    print("after")
"""


def talk() -> None:
    print("from a job")
    os.system("echo from its child")
    print("to stderr", file=sys.stderr)


def executor_with(output: Any = "forward", kind: type[JobExecutor] = JobExecutor) -> JobExecutor:
    return kind(2, config=Settings(executor=ExecutorSettings(output=output)))


def test_a_program_shows_what_its_jobs_print(tmp_path: Path) -> None:
    """What a job and its children print is on the program's own streams, before what the program prints later."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert done.stdout.split("\n") == ["before", "from a job", "from its child", "between", "late", "after", ""]
    assert done.stderr.split("\n") == ["to stderr", ""]


def test_output_goes_to_a_stream_that_replaces_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """Where sys.stdout is replaced, as by pytest or in a notebook, the replacement gets the lines."""
    with executor_with() as executor:
        executor.run(Job(function=talk, pool="process"))
        captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("from a job\nfrom its child\n", "to stderr\n")


TALKATIVE = """
from executor_adapter import Job, JobExecutor, Transition

def talk():
    for number in range(1000):
        print(f"{number:300}")

if __name__ == "__main__":
    with JobExecutor(1) as executor:
        executor.run(Job(function=talk, pool="process"))
    open("ended", "w").close()
"""


def test_a_program_does_not_end_before_its_output_is_read(tmp_path: Path) -> None:
    """What a slow reader has not read yet is not lost at the end of the program."""
    program = tmp_path / "program.py"
    program.write_text(TALKATIVE)
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        assert running.stdout is not None
        wait_for((tmp_path / "ended").exists)
        assert [int(line) for line in running.stdout] == list(range(1000))
    assert running.returncode == 0


def test_a_coroutine_does_not_wait_for_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stdout that takes nothing holds up no event loop, on which `asyncio.wrap_future` reads the future."""
    stuck, waits = Stuck(), []
    monkeypatch.setattr(sys, "stdout", stuck)

    async def run(executor: JobExecutor) -> None:
        await asyncio.wrap_future(executor.submit(Job(function=print, args=("line",), pool="process")))

    with executor_with() as executor:
        try:
            with monkeypatch.context() as patch:
                patch.setattr(program_output, "wait", lambda: waits.append("waited"))
                asyncio.run(run(executor))
        finally:
            stuck.released.set()
    assert waits == []


class WithHook(JobExecutor):
    """An executor that runs each attempt through a hook."""

    async def pre_execution_hook(self, job: Job) -> None: ...


def test_output_under_a_hook_is_forwarded(capsys: pytest.CaptureFixture[str]) -> None:
    """An executor with hooks forwards what its jobs print, too."""
    with executor_with(kind=WithHook) as executor:
        executor.run(Job(function=print, args=("heard",), pool="process"))
    assert capsys.readouterr().out == "heard\n"


@pytest.mark.parametrize("stdout", [None, "closed", "ascii"])
def test_a_stream_that_cannot_be_written_to_is_no_error(monkeypatch: pytest.MonkeyPatch, stdout: Any) -> None:
    """A stdout that is None or closed takes no lines, and one of another encoding gets escapes; no job fails."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    if stdout == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stdout", None if stdout is None else stream)
    with executor_with() as executor:
        assert executor.run(Job(function=print, args=("gr\u00fcn",), pool="process")) is None
    if stdout == "ascii":
        assert raw.getvalue() == b"gr\\xfcn\n"


def test_output_may_be_logged_or_dropped(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """With `executor.output: log` a line is a log record of the job, and with `drop` it is nowhere."""
    caplog.set_level(logging.INFO, "executor_adapter")
    for output in ("log", "drop"):
        with executor_with(output) as executor:
            job = Job(function=print, args=(output,), pool="process")
            executor.run(job)
    assert [record.getMessage() for record in caplog.records if hasattr(record, "attempt")] == ["stdout: log"]
    assert capsys.readouterr().out == ""


def log_an_error() -> float:
    try:
        print(1 / 0)
    except ZeroDivisionError:
        logging.getLogger("collector").exception("page %s is broken", "13 %", extra={"page": 13, "message_id": "m"})
    return time.time()


def test_a_log_record_of_a_worker_process_is_whole(caplog: pytest.LogCaptureFixture) -> None:
    """The program's log has of it what it has of a thread's: traceback, extra fields, place in the source and time."""
    before = time.time()
    with executor_with() as executor:
        job = Job(function=log_an_error, pool="process")
        after = executor.run(job)
    (record,) = [each for each in caplog.records if each.name == "collector"]
    shown = logging.Formatter("%(message)s|%(page)s|%(message_id)s|%(funcName)s|%(filename)s").format(record)
    assert shown.startswith("page 13 % is broken|13|m|log_an_error|test_output.py\nTraceback (most recent call last):")
    assert shown.endswith("ZeroDivisionError: division by zero")
    assert before <= record.created <= after
    assert vars(record)["job_id"] == job.job_id


class Raises(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise ZeroDivisionError(record.getMessage())


def log_to(name: str, text: str) -> str:
    logging.getLogger(name).warning(text)
    return text


@pytest.mark.parametrize("start_method", ["guardian", pytest.param("spawn", marks=pytest.mark.nightly)])
def test_a_filter_that_raises_costs_a_log_record_and_no_job(
    capsys: pytest.CaptureFixture[str], start_method: Any
) -> None:
    """A job whose log record a filter or handler of the program fails at completes, and the error is shown."""
    logger, raises = logging.getLogger("raises"), Raises()
    logger.addFilter(raises)
    config = Settings(executor=ExecutorSettings(start_method=start_method))
    with JobExecutor(1, config=config) as executor:
        job = Job(function=log_to, args=("raises", "of no use"), pool="process")
        assert executor.submit(job).result(timeout=PATIENCE) == "of no use"
    logger.removeFilter(raises)
    assert "ZeroDivisionError: of no use" in capsys.readouterr().err


class Unread(io.StringIO):
    """A stream like a pipe whose reader has closed it."""

    def write(self, text: str) -> int:
        super().write(text)
        raise BrokenPipeError


def test_an_error_of_the_program_s_logging_that_nobody_reads_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that a filter fails at, while nobody reads stderr, ends the reading of no worker's frames."""
    logger, raises, stderr = logging.getLogger("raises"), Raises(), Unread()
    monkeypatch.setattr(sys, "stderr", stderr)
    logger.addFilter(raises)
    record = {"name": "raises", "level": logging.WARNING, "message": "of no use", "created": 1.0, "exc_text": None}
    with JobExecutor(1) as executor:
        supervisor_of(executor).on_message(Assignment(Job(function=talk), 1, b""), "log", record)
    logger.removeFilter(raises)
    wait_for(lambda: "ZeroDivisionError: of no use" in stderr.getvalue())


class Failing(logging.Handler):
    """A handler that raises, as those of users may that do not call `handleError`."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ZeroDivisionError(record.getMessage())


def fail(transition: Transition) -> None:
    raise ValueError(transition.status)


def test_no_job_is_lost_where_the_program_s_logging_raises_for_our_own_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A job completes although an observer fails, and so does the handler of the line that says so."""
    logger, handler = logging.getLogger("executor_adapter"), Failing()
    logger.addHandler(handler)
    try:
        with JobExecutor(1, observers=[fail]) as executor:
            future = executor.submit(Job(function=abs, args=(-1,), pool="process"))
            assert future.result(timeout=PATIENCE) == 1
    finally:
        logger.removeHandler(handler)
    shown: list[str] = []
    wait_for(lambda: shown.append(capsys.readouterr().err) or "ZeroDivisionError: an observer failed" in "".join(shown))


def loggers_of_the_package() -> Iterator[str]:
    """Give the names of the loggers that modules make which may run on the supervisor's thread."""
    package = Path(executor_adapter.__file__).parent
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] not in {"cli", "monitoring", "pipeline", "worker"}:
            yield from re.findall(r'getLogger\("(executor_adapter[^"]*)"\)', path.read_text())


def test_all_our_loggers_keep_what_the_program_s_logging_raises_from_the_supervisor() -> None:
    """No logger is forgotten, but that of jobs: what it raises is for the function that logs."""
    names = set(loggers_of_the_package()) - {"executor_adapter.job"}
    raises = Raises()
    assert len(names) > 5
    for logger in map(logging.getLogger, names):
        logger.addFilter(raises)
        try:
            logger.warning("of no use")
        finally:
            logger.removeFilter(raises)


class Gated(logging.Handler):
    """A handler of the program that holds up each record until it is released."""

    def __init__(self, *, is_open: bool = False) -> None:
        super().__init__()
        self.heard: list[tuple[str, str]] = []
        self.entered, self.released = threading.Event(), threading.Event()
        if is_open:
            self.released.set()

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        self.released.wait(PATIENCE)
        self.heard.append((threading.current_thread().name, record.getMessage()))


@contextlib.contextmanager
def handling(handler: Gated, *names: str) -> Iterator[Gated]:
    for name in names:
        logging.getLogger(name).addHandler(handler)
    try:
        yield handler
    finally:
        handler.released.set()
        for name in names:
            logging.getLogger(name).removeHandler(handler)


def log_numbers(count: int) -> None:
    for number in range(count):
        logging.getLogger("numbers").warning("%d", number)


def test_no_handler_of_the_program_runs_on_the_supervisor_s_thread() -> None:
    """A job's log records, and the package's own, are handled in order elsewhere, before the result is returned."""
    with handling(Gated(is_open=True), "numbers", "executor_adapter") as handler:
        with JobExecutor(1, observers=[fail]) as executor:
            executor.run(Job(function=log_numbers, args=(3,), pool="process"))
            heard = handler.heard.copy()
        failed = [("executor-output", "an observer failed")]
        numbers = [("executor-output", str(number)) for number in range(3)]
        assert heard == failed * 2 + numbers + failed


def test_a_handler_that_waits_delays_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the program's handler holds up a job's log record, other jobs end at their limits."""
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_WAIT_SECONDS", 0.0)
    with handling(Gated(), "numbers") as handler, JobExecutor(2) as executor:
        logs = executor.submit(Job(function=log_numbers, args=(1,), pool="process"))
        assert handler.entered.wait(PATIENCE)
        limited = Job(function=time.sleep, args=(60,), pool="process", max_runtime=0.1, retry_attempts=0)
        assert isinstance(executor.submit(limited).exception(PATIENCE), JobTimeoutError)
        assert logs.exception(PATIENCE) is None
        assert handler.heard == []


def test_records_that_a_handler_does_not_take_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a handler takes nothing, so many records wait and the rest are left out; the log says how many."""
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_WAITING", 1000)
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_WAIT_SECONDS", 0.0)
    with handling(Gated(), "numbers", "executor_adapter") as handler:
        with JobExecutor(1) as executor:
            assert executor.run(Job(function=log_numbers, args=(50,), pool="process")) is None
        handler.released.set()
        wait_for(lambda: not program_output.pending)
        *numbers, said = [text for _, text in handler.heard]
    assert 0 < len(numbers) < 10
    assert numbers == [str(number) for number in range(len(numbers))]
    assert said == f"{50 - len(numbers)} lines were left out: this program's stdout or log is too slow"


def test_what_a_handler_raises_does_not_wait_for_the_thread_that_says_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where too much waits, its error is left out; what others say is still written in order."""
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_WAITING", 1)
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_PAUSE_SECONDS", 0.0)
    output, said, released = ProgramOutput(), threading.Event(), threading.Event()

    def fail() -> None:
        wait_for(lambda: output.is_full)
        output.write("stderr", "of the thread itself", may_omit=True)
        said.set()
        released.wait(PATIENCE)

    output.call(fail, size=0)
    output.write("stderr", "of another")
    assert said.wait(PATIENCE)
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_PAUSE_SECONDS", PATIENCE)
    third = threading.Thread(
        target=output.write, args=("stderr", "of a third, which can wait"), kwargs={"may_omit": True}
    )
    third.start()
    third.join(0.1)
    released.set()
    third.join()
    output.finish()
    assert capsys.readouterr().err == "of another\nof a third, which can wait\n"


def test_lines_are_written_at_the_end_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is said while the interpreter ends, when no thread starts any more, is written all the same."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    output = ProgramOutput()
    output.write("stdout", "said late")
    output.finish()
    assert capsys.readouterr().out == "said late\n"


class Stuck(io.StringIO):
    """A stream that takes nothing until it is released, like a pipe that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.released = threading.Event()

    def write(self, text: str) -> int:
        self.released.wait(PATIENCE)
        return super().write(text)


def print_numbers(name: str, count: int) -> None:
    for number in range(count):
        print(name, number)


@pytest.mark.parametrize("start_method", ["guardian", pytest.param("spawn", marks=pytest.mark.nightly)])
def test_no_line_is_lost(monkeypatch: pytest.MonkeyPatch, start_method: Any) -> None:
    """All that jobs print arrives, in the order of each, also where they print faster than it is written."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_WAITING", 1 << 17)
    with JobExecutor(2, config=Settings(executor=ExecutorSettings(start_method=start_method))) as executor:
        for name in "ab":
            executor.submit(Job(function=print_numbers, args=(name, 30_000), pool="process"))
    wait_for(lambda: not program_output.pending)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 60_000
    for name in "ab":
        assert [line for line in lines if line[0] == name] == [f"{name} {number}" for number in range(30_000)]


@pytest.mark.parametrize("start_method", ["guardian", pytest.param("spawn", marks=pytest.mark.nightly)])
def test_a_job_waits_for_a_stdout_that_takes_nothing(monkeypatch: pytest.MonkeyPatch, start_method: Any) -> None:
    """It waits in its write; its limits, a cancel and a shutdown end it, and other jobs go on meanwhile."""
    stuck = Stuck()
    monkeypatch.setattr(sys, "stdout", stuck)
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_WAITING", 100)
    monkeypatch.setattr("executor_adapter.supervision.messages.MAX_WAIT_SECONDS", 0.0)
    try:
        settings = ExecutorSettings(start_method=start_method, kill_grace=0.1)
        executor = JobExecutor(2, config=Settings(executor=settings))
        endless = {"function": print_numbers, "args": ("a", 10**9), "pool": "process", "retry_attempts": 0}
        cancelled = executor.submit(Job(**endless))
        wait_for(lambda: program_output.is_full)
        assert executor.run(Job(function=abs, args=(-3,), pool="process")) == 3
        limited = executor.submit(Job(**endless, max_runtime=1))
        assert isinstance(limited.exception(PATIENCE), JobTimeoutError)
        cancelled.cancel()
        assert isinstance(cancelled.exception(PATIENCE), JobCancelledError)
        shut_down = executor.submit(Job(**endless))
        wait_for(shut_down.running)
        executor.shutdown(timeout=0)
        assert isinstance(shut_down.exception(), JobCancelledError)
    finally:
        stuck.released.set()
    wait_for(lambda: not program_output.pending)
    assert 0 < len(stuck.getvalue()) < 2_000_000
