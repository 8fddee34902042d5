"""`jobs ...`: shows a store's jobs, and asks their hosts to cancel or run them again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from executor_adapter.cli.output import (
    JsonOption,
    clock_time,
    console,
    new_table,
    print_answer,
    print_json,
    print_pairs,
    print_rows,
    seconds,
    status_text,
)
from executor_adapter.cli.rerun import FieldsOption, changes_of, live_rerun, rerun_record
from executor_adapter.cli.stores import (
    ConfigOption,
    JobId,
    JobIds,
    StoreOption,
    duration_seconds,
    find_job,
    find_jobs,
    opened,
)
from executor_adapter.cli.waits import jobs_of_gone_hosts, reason_of
from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import Attempt, JobStatus
from executor_adapter.store import JobFilter, JobRecord, JobStore, LogLine, Page, SignedPickles, signed_pickles
from executor_adapter.terminal import SafeText

app = typer.Typer(help="Show the jobs of a store, cancel them, or run them again.", no_args_is_help=True)

COLUMNS = ("ID", "STATUS", "FUNCTION", "TYPE", "TOOL", "TRY", "CREATED", "TOOK", "ERROR")

MAX_OFFSET = 10**15
"""Last position in a list that can be asked for; databases have integers of 64 bits."""

StatusOption = Annotated[
    list[JobStatus] | None, typer.Option("--status", "-s", help="Only this status; may be repeated.")
]
TypeOption = Annotated[str | None, typer.Option("--type", "-t", help="Only jobs of this type.")]
ToolOption = Annotated[str | None, typer.Option("--tool", help="Only jobs of this tool.")]
QueueOption = Annotated[str | None, typer.Option("--queue", "-q", help="Only jobs of this queue, such as collection.")]


@app.command("list")
def list_jobs(
    status: StatusOption = None,
    job_type: TypeOption = None,
    tool: ToolOption = None,
    queue: QueueOption = None,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Only quarantined jobs.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Jobs per page.")] = 20,
    page: Annotated[int, typer.Option("--page", "-p", min=1)] = 1,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the newest first."""
    wanted = JobFilter(
        statuses=frozenset(status) if status else None,
        job_type=job_type,
        tool_name=tool,
        queue=queue,
        quarantined=True if quarantined else None,
    )
    if page * limit > MAX_OFFSET:
        raise ConfigurationError(f"--page {page} of --limit {limit} is beyond any list: give smaller numbers")
    with opened(store, config_file) as opened_store:
        found = opened_store.find(wanted, offset=(page - 1) * limit, limit=limit)
        gone = jobs_of_gone_hosts(opened_store, found.records)
    if as_json:
        total = {"total": found.total, "total_is_exact": found.total_is_exact}
        shown = [record.to_json() | {"host_gone": record.job_id in gone} for record in found.records]
        print_json(total | {"jobs": shown})
    else:
        _print_page(found, page, limit, gone)


def _print_page(found: Page, page: int, limit: int, gone: frozenset[str]) -> None:
    print_rows(COLUMNS, [row(record, gone) for record in found.records], by_end=True)
    console().print(SafeText(_position(found, page, (page - 1) * limit + 1), style="dim"))


def _position(found: Page, page: int, first: int) -> str:
    """Return which part of the matching jobs is shown, as text."""
    last = first + len(found.records) - 1
    total = f"{'' if found.total_is_exact else 'more than '}{found.total:,} job{'s' if found.total != 1 else ''}"
    if not found.records:
        return f"no page {page}: there are {total}" if found.total else "no jobs"
    if len(found.records) == found.total:
        return total
    is_last = found.total_is_exact and last == found.total
    return f"{first:,} to {last:,} of {total}" + ("" if is_last else f"; more with --page {page + 1}")


def note_on(record: JobRecord, gone: frozenset[str]) -> str:
    """Return what the status of a job does not say; `gone` has the ids of jobs whose host is gone."""
    return "quarantined" if record.quarantined else "host gone" if record.job_id in gone else ""


def row(record: JobRecord, gone: frozenset[str]) -> list[Any]:
    """Return the cells of a job in `jobs list`."""
    return [
        record.job_id,
        status_text(record.status, note_on(record, gone)),
        record.function.rpartition(":")[2],
        record.job_type,
        record.tool_name,
        record.attempt or "",
        clock_time(record.created_at),
        seconds(record.duration),
        error_line(record),
    ]


def error_line(failed: JobRecord | Attempt) -> str:
    """Return the code of the last error with the first line of its message; nothing where there was none."""
    return "" if failed.error_code is None else f"{failed.error_code}: {failed.error_message or ''}".partition("\n")[0]


@app.command()
def show(
    job_id: JobId, store: StoreOption = None, config_file: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show everything the store knows about one job, and what it waits for."""
    with opened(store, config_file) as opened_store:
        record = find_job(opened_store, job_id)
        waits_for, gone = reason_of(opened_store, record), jobs_of_gone_hosts(opened_store, [record])
    if as_json:
        print_json(record.to_json() | {"arguments": record.arguments, "waits_for": waits_for})
        return
    facts = _facts(record, gone) | {"waits for": waits_for}
    print_pairs({name: value for name, value in facts.items() if value not in (None, "", {})})
    if record.attempts:
        console().print()
        _print_attempts(record.attempts)
    if record.traceback is not None:
        console().print()
        console().print(SafeText(record.traceback), soft_wrap=True)


def _facts(record: JobRecord, gone: frozenset[str]) -> dict[str, Any]:
    progress = record.progress
    of_total = f" of {progress.total:g}" if progress is not None and progress.total is not None else ""
    return {
        "id": record.job_id,
        "status": status_text(record.status, note_on(record, gone)),
        "type": record.job_type,
        "tool": record.tool_name,
        "queue": record.queue,
        "function": record.function,
        "arguments": _arguments(record),
        "metadata": dict(record.metadata),
        "created": clock_time(record.created_at),
        "started": clock_time(record.started_at),
        "ended": clock_time(record.completed_at),
        "took": seconds(record.duration),
        "next try": clock_time(record.retry_at),
        "records": record.records_processed,
        "progress": "" if progress is None else f"{progress.done:g}{of_total} {progress.message}".strip(),
        "error": "" if record.error_code is None else f"{record.error_code}: {record.error_message}",
        "retry of": record.retry_of,
        "max_runtime": seconds(record.max_runtime),
    }


def _arguments(record: JobRecord) -> str:
    if record.arguments is None:
        return "pickled" if record.pickled is not None else ""
    args, kwargs = record.arguments
    return ", ".join([*(repr(value) for value in args), *(f"{name}={value!r}" for name, value in kwargs.items())])


def _print_attempts(attempts: Sequence[Attempt]) -> None:
    table = new_table("TRY", "POOL", "PID", "WAITED", "RAN", "KILLED IN", "PEAK", "ENDED")
    for column in table.columns:
        column.overflow = "fold"
    table.columns[-1].no_wrap = False
    for attempt in attempts:
        peak = "" if attempt.peak_rss is None else f"{attempt.peak_rss / (1 << 20):.0f} MiB"
        pool = attempt.pool if attempt.node is None else f"{attempt.pool} on {attempt.node}"
        cells = [attempt.number, pool, attempt.pid or "", seconds(attempt.queue_seconds)]
        cells += [seconds(attempt.run_seconds), seconds(attempt.kill_seconds), peak, error_line(attempt) or "completed"]
        table.add_row(*map(str, cells))
    console().print(table)


@app.command()
def logs(
    job_id: JobId, store: StoreOption = None, config_file: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Print what a job's function logged, or printed in a worker process, and how it failed.

    The newest 1000 lines are kept.
    """
    with opened(store, config_file) as opened_store:
        record = find_job(opened_store, job_id)
        for line in log_of(opened_store, record):
            if as_json:
                print_json(asdict(line))
            else:
                console().print(line_text(line), soft_wrap=True)


def log_of(store: JobStore, record: JobRecord) -> Iterator[LogLine]:
    """Yield the lines of the job, and how it failed."""
    lines = store.lines(record.job_id)
    yield from lines
    if record.traceback is not None:
        yield _failure(record, lines[-1].seq + 1 if lines else 1)


def _failure(record: JobRecord, seq: int) -> LogLine:
    """Return how the job failed, as the last line of its log."""
    at = record.completed_at or record.created_at
    text = f"{record.error_code}: {record.error_message}\n{record.traceback}"
    return LogLine(record.job_id, record.attempt, seq, at, logging.ERROR, "traceback", text)


def line_text(line: LogLine) -> SafeText:
    """Return a log record as `12:03:04  WARNING  name: text`, and printed output as time and text."""
    text = SafeText(f"{clock_time(line.at)}  ", style="dim")
    if line.level:
        text.append(f"{logging.getLevelName(line.level):<8}", style=_style(line.level))
        text.append(f"{line.source}: ", style="dim")
    # Further lines are indented, so that none passes for a line of another record.
    return text.append(line.text.replace("\n", "\n    "), style="red" if line.source == "stderr" else "")


def _style(level: int) -> str:
    return "red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else "cyan"


@app.command()
def retry(
    job_ids: JobIds,
    fields: FieldsOption = None,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queue finished jobs again, as new jobs; a running host of their queue runs them.

    A job that is queued again already is not queued twice: the exit code is 1.
    """
    given = changes_of(fields)
    queued: list[dict[str, Any]] = []
    with opened(store, config_file) as opened_store:
        for fresh in [rerun_record(record, given) for record in find_jobs(opened_store, job_ids)]:
            before = live_rerun(opened_store, fresh.retry_of)
            if before is None:
                opened_store.enqueue(fresh)
            new = before or fresh
            queued.append({"job_id": new.job_id, "retry_of": new.retry_of, "queue": new.queue, "new": before is None})
    print_answer(queued, map(_queued_text, queued), as_json=as_json)
    if not all(each["new"] for each in queued):
        raise typer.Exit(1)


def _queued_text(queued: dict[str, Any]) -> str:
    if not queued["new"]:
        new = queued["job_id"]
        return f"{queued['retry_of']} is queued again already, as {new}: wait for it, or `jobs cancel {new}` first"
    of = f" of queue {queued['queue']!r}" if queued["queue"] else ""
    return f"{queued['retry_of']} is queued again as {queued['job_id']}: a running host{of} will run it"


@app.command()
def cancel(
    job_ids: JobIds, store: StoreOption = None, config_file: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Cancel jobs, whichever process runs them; their hosts end them within seconds."""
    _ask("request_cancel", job_ids, store, config_file, as_json, "cancel requested", "it has ended already")


@app.command()
def release(
    job_ids: JobIds, store: StoreOption = None, config_file: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Release quarantined jobs, which killed more workers than their policy allows, so that they can be retried."""
    released = "released: run it again with `jobs retry`"
    _ask("release", job_ids, store, config_file, as_json, released, "it is not quarantined")


def _ask(method: str, job_ids: list[str], store: Any, config: Any, as_json: bool, done: str, not_done: str) -> None:
    with opened(store, config) as opened_store:
        found = [record.job_id for record in find_jobs(opened_store, job_ids)]
        answers = {job_id: bool(getattr(opened_store, method)(job_id)) for job_id in found}
    lines = (f"{job_id}: {done if answer else not_done}" for job_id, answer in answers.items())
    print_answer([{"job_id": job_id, "done": answer} for job_id, answer in answers.items()], lines, as_json=as_json)
    if not all(answers.values()):
        raise typer.Exit(1)


@app.command()
def resign(store: StoreOption = None, config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Sign pickled jobs with the first key of store.pickle_key, so that its other keys can go.

    The exit code is 1 where jobs are left that no key has signed: they do not run.
    """
    key = load_config(config_file).store.pickle_key
    with opened(store, config_file) as opened_store:
        signed, left = opened_store.sign_again(signed_pickles(None if key is None else key.get_secret_value()))
    lines = (f"{signed:,} pickled jobs signed", *(f"{job_id}: its pickle {SignedPickles.REFUSAL}" for job_id in left))
    print_answer({"signed": signed, "left": left}, lines, as_json=as_json)
    if left:
        raise typer.Exit(1)


@app.command()
def cleanup(
    older_than: Annotated[str, typer.Option("--older-than", help="How long ago they ended: 90s, 15m, 2h, 7d.")] = "24h",
    queue: QueueOption = None,
    store: StoreOption = None,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete jobs that ended long ago; live and quarantined ones stay."""
    with opened(store, config_file) as opened_store:
        deleted = opened_store.cleanup(duration_seconds(older_than) / 3600, queue=queue)
    print_answer({"deleted": deleted}, [f"{deleted:,} job{'s' if deleted != 1 else ''} deleted"], as_json=as_json)
