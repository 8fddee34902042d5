"""`run`: one job from the shell, with all guarantees. Its exit code says how it ended:

0     completed
1     failed: its own error
2     refused: the command line, the configuration, or a job that can never run so
65    failed for good, by its data or its request: DATA_ERROR, REQUEST_ERROR   (EX_DATAERR of sysexits.h)
78    failed by how it is set up: CONFIGURATION_ERROR, SERIALIZATION_ERROR      (EX_CONFIG)
124   past a limit of time: TIMEOUT_ERROR, QUEUE_TIMEOUT, DEADLINE_EXCEEDED     (as timeout(1))
130   cancelled, or interrupted                                                 (as a shell has it)
134   WORKER_CRASHED: its process died                                            (as by SIGABRT)
137   MEMORY_LIMIT: it outgrew memory_limit and was killed                        (as by the kernel)
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from executor_adapter.cli.output import JsonOption, plain, print_json, print_no_more, seconds, shown
from executor_adapter.cli.rerun import value_of
from executor_adapter.cli.stores import ConfigOption, StoreOption
from executor_adapter.config import Settings, load_config
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.job.functions import resolve
from executor_adapter.job.model import Job
from executor_adapter.job.status import JobStatus
from executor_adapter.job.transition import Transition
from executor_adapter.pools.base import Assignment

CODES = {
    "DATA_ERROR": 65,
    "REQUEST_ERROR": 65,
    "CONFIGURATION_ERROR": 78,
    "SERIALIZATION_ERROR": 78,
    "TIMEOUT_ERROR": 124,
    "QUEUE_TIMEOUT": 124,
    "DEADLINE_EXCEEDED": 124,
    "CANCELLED": 130,
    "WORKER_CRASHED": 134,
    "MEMORY_LIMIT": 137,
}


def run(
    function: Annotated[
        str, typer.Argument(metavar="MODULE:FUNCTION", help="Found as `python -m` finds it, from here.")
    ],
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", "-a", metavar="[NAME=]VALUE", help="An argument, as JSON or text; may be repeated."),
    ] = None,
    pool: Annotated[str, typer.Option("--pool", help="auto, coroutine, thread or process.")] = "process",
    max_runtime: Annotated[float | None, typer.Option("--max-runtime", help="Seconds for each attempt.")] = None,
    deadline: Annotated[float | None, typer.Option("--deadline", help="Seconds for all attempts together.")] = None,
    retries: Annotated[int | None, typer.Option("--retries", min=0, help="Retries after the first attempt.")] = None,
    retry_delay: Annotated[float | None, typer.Option("--retry-delay", min=0, help="Seconds before the first.")] = None,
    memory_limit: Annotated[str | None, typer.Option("--memory-limit", metavar="SIZE", help="Such as 512MiB.")] = None,
    job_type: Annotated[str | None, typer.Option("--type", "-t", help="The job's type.")] = None,
    tool: Annotated[str | None, typer.Option("--tool", help="The tool it is for: its limits hold.")] = None,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one job here and now; the exit code says how it ended.

    0 completed, 1 failed, 2 refused, 65 bad data, 78 set up wrongly, 124 past a limit of time, 130 cancelled,
    134 its process died, 137 out of memory.

    Example: executor-adapter run mypackage.jobs:collect --arg flights --arg year=2013 --max-runtime 600
    """
    sys.path.insert(0, os.getcwd())
    args, kwargs = parse_arguments(arg or [])
    asked = {
        "pool": pool, "max_runtime": max_runtime, "deadline": deadline, "retry_attempts": retries,
        "retry_delay": retry_delay, "memory_limit": memory_limit, "job_type": job_type, "tool_name": tool,
    }  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    config = load_config(config_file)
    with printed_to_stderr() if as_json else contextlib.nullcontext():
        check_call(function, args, kwargs)
        job = _job(function=function, args=args, kwargs=kwargs, **given)
        with _LoneExecutor(1, config=config, store=store or config.store.url, observers=[_tell_retry]) as executor:
            value, error = _wait(executor, job)
    try:
        _tell(job, value, error, as_json=as_json)
    except BrokenPipeError:
        print_no_more()
    raise typer.Exit(exit_code(job))


class _LoneExecutor(JobExecutor):
    """Runs what it is given and takes over no other job of its store: that may be one of a program that this one cannot
    import, and nobody at a shell waits for it."""

    def __init__(self, max_workers: int, *, config: Settings, **given: Any) -> None:
        never = config.store.model_copy(update={"recover_every": None})
        super().__init__(max_workers, config=config.model_copy(update={"store": never}), **given)

    def recover(self) -> list[Job]:
        return []


@contextlib.contextmanager
def printed_to_stderr() -> Iterator[None]:
    """What is printed meanwhile, here or by a child process, goes to stderr: stdout is for the JSON alone."""
    stdout, kept = sys.stdout, os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        stdout.flush()  # of whoever holds on to it
        os.dup2(kept, 1)
        os.close(kept)


def check_call(function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """
    Raises:
        InvalidJobError: there is no such function.
        typer.BadParameter: it cannot be called so.
    """
    found = resolve(function)
    with contextlib.suppress(ValueError):  # some built-in functions do not say what they take
        signature = inspect.signature(found)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise typer.BadParameter(f"{error}: {function} takes {signature}", param_hint="--arg") from None


def _job(**fields: Any) -> Job:
    try:
        return Job(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}={first['input']!r}: {first['msg']}") from None


def parse_arguments(given: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """VALUE is an argument by position, NAME=VALUE one by name; JSON in quotes ('"a=b"') is always a value."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if equals and name.isidentifier():
            kwargs[name] = value_of(value)
        else:
            args.append(value_of(text))
    return tuple(args), kwargs


def _tell_retry(transition: Transition) -> None:
    """Whoever waits had better know why."""
    if transition.status is JobStatus.RETRYING:
        job = transition.job
        wait = seconds((job.state.retry_at or transition.at) - transition.at)
        tries = job.policy.retry_attempts + 1
        said = f"attempt {job.attempt} of {tries} failed, the next in {wait}: {job.error_code}: {job.error_message}"
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(said, style="yellow"))


class _Voice:
    """Passes on what the function prints and logs, to where it would have gone had it run here."""

    def prepare(self, assignment: Assignment) -> None:
        """Nothing is put around it."""

    def on_message(self, assignment: Assignment, topic: str, content: Any) -> None:
        with contextlib.suppress(OSError):  # whoever read it may be gone: the job goes on
            if topic == "output":
                stream, text = content
                print(text, file=sys.stderr if stream == "stderr" else sys.stdout, flush=True)
            elif topic == "log":
                print(f"{content['name']}: {content['message']}", file=sys.stderr, flush=True)


def _wait(executor: JobExecutor, job: Job) -> tuple[Any, BaseException | None]:
    future = executor.submit(job, scope=_Voice())
    try:
        error = future.exception()
    except CancelledError as cancelled:
        return None, cancelled
    except KeyboardInterrupt:
        executor.shutdown(timeout=0)
        return None, KeyboardInterrupt("interrupted")
    return (future.result() if error is None else None), error


def _tell(job: Job, value: Any, error: BaseException | None, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "job_id": job.job_id,
                "status": job.status,
                "value": plain(value),
                "error_code": job.error_code,
                "error_message": job.error_message,
                "attempts": len(job.attempts),
                "duration": job.duration,
                "records_processed": job.records_processed,
            }
        )
        return
    if value is not None:
        typer.echo(_shown(value))
    took = seconds(job.duration) or "no time"
    tries = f", {len(job.attempts)} attempts" if len(job.attempts) > 1 else ""
    why = "" if error is None else f" {job.error_code}: {job.error_message}"
    said = Text(f"{job.status} in {took}{tries}{why}", style="green" if error is None else "red")
    Console(stderr=True, highlight=False, soft_wrap=True).print(said)


def _shown(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except Exception:  # its own code, too, may fail
        return shown(value)


def exit_code(job: Job) -> int:
    """See the module."""
    if job.status is JobStatus.COMPLETED:
        return 0
    if job.status is JobStatus.CANCELLED:
        return CODES["CANCELLED"]
    return CODES.get(job.error_code or "", 1)
