"""`run`: one job from the shell, with all guarantees. Its exit code shows how the job ended:

0     completed
1     failed with an error of its own
2     refused: by the command line, the configuration, or because such a job can never run
65    failed for good because of its data or request: DATA_ERROR, REQUEST_ERROR   (EX_DATAERR of sysexits.h)
75    WORKER_UNAVAILABLE, NODE_LOST: no worker could be started, or its node went  (EX_TEMPFAIL)
78    failed because of its set-up: CONFIGURATION_ERROR, SERIALIZATION_ERROR,
      MISSING_MODULE                                                               (EX_CONFIG)
124   exceeded a time limit: TIMEOUT_ERROR, QUEUE_TIMEOUT, DEADLINE_EXCEEDED       (as timeout(1))
130   cancelled, or interrupted by Ctrl-C                                          (as in a shell)
134   WORKER_CRASHED: its process died                                             (as by SIGABRT)
137   MEMORY_LIMIT: it exceeded memory_limit and was killed                        (as by the kernel)

The code stays the same when the reader of the output exits, as in `run ... | head -1`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from typing import Annotated, Any

import typer

from executor_adapter.cli.checks import project_modules
from executor_adapter.cli.output import (
    JsonOption,
    plain,
    print_json,
    print_note,
    safe_repr,
    seconds,
)
from executor_adapter.cli.rerun import FieldsOption, changes_of, value_of
from executor_adapter.cli.stores import ConfigOption, StoreOption
from executor_adapter.config import Settings, load_config
from executor_adapter.error_facts import ErrorFacts
from executor_adapter.executor import JobExecutor
from executor_adapter.job import Job, JobStatus
from executor_adapter.monitoring import ProgressBar, ProgressCounts
from executor_adapter.terminal import SafeText, escaped_lines
from executor_adapter.worker.facts import facts_of

EXIT_CODES = {
    "DATA_ERROR": 65,
    "REQUEST_ERROR": 65,
    "WORKER_UNAVAILABLE": 75,
    "NODE_LOST": 75,
    "CONFIGURATION_ERROR": 78,
    "SERIALIZATION_ERROR": 78,
    "MISSING_MODULE": 78,
    "TIMEOUT_ERROR": 124,
    "QUEUE_TIMEOUT": 124,
    "DEADLINE_EXCEEDED": 124,
    "CANCELLED": 130,
    "WORKER_CRASHED": 134,
    "MEMORY_LIMIT": 137,
}


def run(
    function: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION", help="The function; this directory is looked at after what is installed."
        ),
    ],
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", "-a", metavar="[NAME=]VALUE", help="An argument, as JSON or text; may be repeated."),
    ] = None,
    pool: Annotated[
        str, typer.Option("--pool", help="auto, coroutine, thread, process, ssh, dask or ray.")
    ] = "process",
    fields: FieldsOption = None,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one job now, in this process; the exit code shows how it ended.

    0 completed, 1 failed, 2 refused, 65 bad data, 78 wrong configuration, 124 time limit exceeded, 130 cancelled,
    134 its process died, 137 out of memory.

    Example: executor-adapter run mypackage.jobs:collect --arg flights --arg year=2013 --set max_runtime=600
    """
    args, kwargs = parse_arguments(arg or [])
    given = {"pool": pool, "args": args, "kwargs": kwargs} | changes_of(fields)
    config = load_config(config_file)
    with project_modules(config_file), contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        job = Job(function=function, **given)
        url = store or config.store.url
        with _SingleJobExecutor(1, config=config, store=url) as executor:
            value, error = _wait(executor, job)
    facts = None if error is None else facts_of(error)
    with contextlib.suppress(BrokenPipeError):  # The exit code is the job's, whether or not somebody reads the rest.
        _print_result(job, value, facts, as_json=as_json)
        if not as_json:
            if facts is not None and facts.traceback is not None:
                print_note(SafeText(facts.traceback, style="dim"))
            print_note(_summary(job, facts))
    raise typer.Exit(exit_code(job) or int(facts is not None))


class _SingleJobExecutor(JobExecutor):
    """Runs the job it is given, and takes over no other job of its store.

    Those may belong to a program whose functions cannot be imported here, and no one at the shell waits for them.
    """

    def __init__(self, max_workers: int, *, config: Settings, **options: Any) -> None:
        never = config.store.model_copy(update={"recover_every": None})
        super().__init__(max_workers, config=config.model_copy(update={"store": never}), **options)

    def recover(self) -> list[Job]:
        return []


def parse_arguments(given: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that `given` stands for.

    VALUE is positional, NAME=VALUE a keyword; text in JSON quotes ('"a=b"') is always a positional value.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if equals and name.isidentifier():
            kwargs[name] = value_of(value)
        else:
            args.append(value_of(text))
    return tuple(args), kwargs


def _wait(executor: JobExecutor, job: Job) -> tuple[Any, BaseException | None]:
    with ProgressBar(str(job.function).rpartition(":")[2], functools.partial(_progress, job), summary=False):
        future = executor.submit(job)
        try:
            error = future.exception()
        except KeyboardInterrupt:
            print_note(SafeText("interrupted: ending the job", style="yellow"))
            executor.shutdown(timeout=0)
            return None, KeyboardInterrupt("interrupted")
    return (future.result() if error is None else None), error


def _progress(job: Job) -> ProgressCounts:
    """Return how far the job is, and what it waits for."""
    note = "waiting for a worker" if job.status is JobStatus.PENDING else f"{job.status}, attempt {job.attempt}"
    progress = job.progress
    if progress is None:
        return ProgressCounts(note=note)
    total = None if not progress.total else round(progress.total)
    return ProgressCounts(done=round(progress.done), total=total, note=progress.message or note)


def _print_result(job: Job, value: Any, facts: ErrorFacts | None, *, as_json: bool) -> None:
    if as_json:
        names = ("job_id", "status", "duration", "records_processed")
        shown = {name: getattr(job, name) for name in names} | {
            "value": plain(value),
            "attempts": job.attempt,
        }
        shown["error_code"] = job.error_code or (facts and facts.code)
        shown["error_message"] = job.error_message or (facts and facts.text)
        print_json(shown | {"traceback": facts and facts.traceback})
    elif value is not None:
        typer.echo(escaped_lines(_value_text(value)))


def _value_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except Exception:  # The value's own code may raise anything.
        return safe_repr(value)


def _summary(job: Job, error: ErrorFacts | None) -> SafeText:
    took = seconds(job.duration) or "no time"
    tries = f", {job.attempt} attempts" if job.attempt > 1 else ""
    why = "" if error is None else f" {job.error_code or error.code}: {job.error_message or error.text}"
    return SafeText(f"{job.status} in {took}{tries}{why}", style="green" if error is None else "red")


def exit_code(job: Job) -> int:
    """Return the exit code for how this job ended; see the module."""
    if job.status is JobStatus.COMPLETED:
        return 0
    if job.status is JobStatus.CANCELLED:
        return EXIT_CODES["CANCELLED"]
    return EXIT_CODES.get(job.error_code or "", 1)
