"""Opens the store of a command, and finds the jobs that its arguments mean."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from executor_adapter.cli.output import CUT
from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import seconds_in
from executor_adapter.store import JobFilter, JobRecord, JobStore, StoreUnavailableError, open_store

StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="The store; default: store.url of the configuration.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="The configuration; default: config.yaml here.")
]

MAX_AGE_SECONDS = 1e10
"""Three centuries."""
MAX_NAMED = 3
"""Jobs that a message names where part of an id matches several."""
FIRST_PAGE = 100
"""Jobs in the first page when ids are searched; each further page is ten times as large."""


@contextlib.contextmanager
def opened(store: str | None, config: Path | None) -> Iterator[JobStore]:
    """Open the store that was given, or else the configuration's, and close it at the end.

    Raises:
        ConfigurationError: There is no store, or it is in memory, where no other process sees it.
        StoreUnavailableError: The store cannot be opened.
    """
    url = store or load_config(config).store.url
    if url is None:
        raise ConfigurationError(
            "no store is configured: set store.url in config.yaml (sqlite:///jobs.db), or give --store URL"
        )
    if url.partition(":")[0] == "memory":
        raise ConfigurationError("store.url 'memory:' is visible to its own program only: give sqlite:///jobs.db")
    if (file := file_of(url)) is not None and not file.exists():  # Opening it would create an empty store.
        raise StoreUnavailableError(
            f"there is no file {file}: no program has stored jobs there yet; check --store and store.url"
        )
    with contextlib.closing(open_store(url)) as found:
        yield found


def file_of(url: str) -> Path | None:
    """Return the file of an SQLite store; None for another store."""
    scheme, _, path = url.partition("?")[0].partition(":///")
    return Path(path) if scheme.startswith("sqlite") and path else None


def find_job(store: JobStore, job_id: str) -> JobRecord:
    """Return the job with this id, or the only one whose id contains it.

    Raises:
        NoSuchJobError: No job matches, or several do; the message names some of them.
    """
    if not job_id:
        raise NoSuchJobError("the job id is empty: give an id, or a part that no other id contains")
    record = store.get(job_id)
    if record is not None:
        return record
    found = list(itertools.islice(with_in_id(store, job_id.removeprefix(CUT)), MAX_NAMED + 1))
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoSuchJobError(f"no job has an id that contains {job_id!r}: see `jobs list`")
    named = ", ".join(record.job_id for record in found[:MAX_NAMED]) + (", ..." if len(found) > MAX_NAMED else "")
    raise NoSuchJobError(f"{job_id!r} is part of several ids ({named}): give a longer part")


def find_jobs(store: JobStore, job_ids: Iterable[str]) -> list[JobRecord]:
    """Return the job for each of these ids, without duplicates.

    Raises:
        NoSuchJobError: As `find_job`.
    """
    return list({record.job_id: record for record in (find_job(store, job_id) for job_id in job_ids)}.values())


def with_in_id(store: JobStore, part: str) -> Iterator[JobRecord]:
    """Yield the jobs whose id contains `part`, newest first.

    A store searches for text in other columns too, so the ids that it finds are compared here.
    """
    wanted, offset, limit = JobFilter(text=part), 0, FIRST_PAGE
    seen: set[str] = set()  # A job that is added meanwhile moves others to the next page.
    while records := store.find(wanted, offset=offset, limit=limit).records:
        matching = {record.job_id: record for record in records if part in record.job_id}
        yield from (record for job_id, record in matching.items() if job_id not in seen)
        seen |= matching.keys()
        offset, limit = offset + len(records), 10 * limit


class NoSuchJobError(Exception):
    """An id matches no job, or several."""


def duration_seconds(text: str) -> float:
    """Return the seconds of a duration such as 90s, 15m, 2h or 7d.

    Raises:
        typer.BadParameter: `text` is not a duration.
    """
    seconds = seconds_in(text)
    if seconds is None:
        raise typer.BadParameter(f"{text!r} is not a duration: give 90s, 15m, 2h or 7d")
    if seconds > MAX_AGE_SECONDS:
        raise typer.BadParameter(f"{text[:20]!r} is too long: give 90s, 15m, 2h or 7d")
    return seconds


JobIds = Annotated[list[str], typer.Argument(metavar="JOB_ID...", help="Ids, or parts of ids.")]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="An id, or part of it.")]
