"""The store that a command works on, and the jobs that are meant."""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.store import JobFilter, JobRecord, JobStore, StoreUnavailableError, open_store

StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="The store; default: store.url of the configuration.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="The configuration; default: config.yaml here.")
]

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")
LONGEST = 1e10
"""Seconds: three centuries."""
NAMED = 3
"""Jobs that are named where a part of an id means several."""
LOOK_THROUGH = 100
"""Jobs that are asked for first where their ids are gone through; each further time ten times as many."""
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def store_url(store: str | None, config: Path | None) -> str | None:
    return store or load_config(config).store.url


@contextlib.contextmanager
def opened(store: str | None, config: Path | None) -> Iterator[JobStore]:
    """The store that was named, else the configuration's.

    Raises:
        ConfigurationError: neither names one, or one in memory, which no other process sees.
        StoreUnavailableError: it cannot be opened.
    """
    url = store_url(store, config)
    if url is None:
        raise ConfigurationError(
            "there is no store to look into: set store.url in config.yaml (sqlite:///jobs.db), or give --store URL"
        )
    if url.partition(":")[0] == "memory":
        raise ConfigurationError("store.url: 'memory:' is seen by its own program alone: give sqlite:///jobs.db")
    _refuse_missing(url)
    found = open_store(url)
    try:
        yield found
    finally:
        found.close()


def _refuse_missing(url: str) -> None:
    """To look into a file that is not there would make an empty one, and say that there are no jobs."""
    path = url.partition(":///")[2]
    if url.startswith("sqlite") and path and not Path(path).exists():
        raise StoreUnavailableError(
            f"there is no file {path}: no program has kept jobs there yet; see --store and store.url"
        )


def find_job(store: JobStore, job_id: str) -> JobRecord:
    """The job with this id, or the only one with this part of an id.

    Raises:
        NoSuchJobError: there is none, or more than one; some of them are named.
    """
    if not job_id:
        raise NoSuchJobError("'' is part of every id: give an id, or a part of it that no other has")
    record = store.get(job_id)
    if record is not None:
        return record
    found = list(itertools.islice(with_in_id(store, job_id), NAMED + 1))
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoSuchJobError(f"no job has the id {job_id!r}, or one with that in it")
    named = ", ".join(record.job_id for record in found[:NAMED]) + (", ..." if len(found) > NAMED else "")
    raise NoSuchJobError(f"{job_id!r} is in the ids of several jobs ({named}): give more of it")


def find_jobs(store: JobStore, job_ids: Iterable[str]) -> list[JobRecord]:
    """The job that each of these means, once where several mean the same.

    Raises:
        NoSuchJobError: as `find_job`.
    """
    return list({record.job_id: record for record in (find_job(store, job_id) for job_id in job_ids)}.values())


def with_in_id(store: JobStore, part: str) -> Iterator[JobRecord]:
    """The jobs that have `part` in their id, newest first. A store looks for text in other columns too, so all that it
    finds is gone through."""
    wanted, offset, limit = JobFilter(text=part), 0, LOOK_THROUGH
    seen: set[str] = set()  # a job that is new meanwhile moves others to the next page
    while records := store.find(wanted, offset=offset, limit=limit).records:
        fitting = {record.job_id: record for record in records if part in record.job_id}
        yield from (record for job_id, record in fitting.items() if job_id not in seen)
        seen |= fitting.keys()
        offset, limit = offset + len(records), 10 * limit


class NoSuchJobError(Exception):
    """No job is meant, or more than one."""


def ago(text: str | None) -> float | None:
    """The time, in seconds since the epoch, that lies `text` before now: 90s, 15m, 2h, 7d.

    Raises:
        typer.BadParameter: it is no length of time.
    """
    return None if text is None else time.time() - length(text)


def length(text: str) -> float:
    """Seconds of 90s, 15m, 2h, 7d.

    Raises:
        typer.BadParameter: it is no length of time.
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is no length of time: give 90s, 15m, 2h or 7d")
    seconds = float(match[1]) * _UNITS[match[2]]
    if seconds > LONGEST:
        raise typer.BadParameter(f"{text[:20]!r} is longer than any job is remembered: give 90s, 15m, 2h or 7d")
    return seconds


def complete_job_id(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """For the shell: the newest jobs whose id has that in it."""
    try:
        with opened(ctx.params.get("store"), ctx.params.get("config_file")) as store:
            fitting = (record for record in with_in_id(store, incomplete) if record.job_id.startswith(incomplete))
            return [(record.job_id, f"{record.status} {record.job_type}") for record in itertools.islice(fitting, 50)]
    except Exception:
        return []  # a shell that completes is no place for complaints


JobIds = Annotated[
    list[str], typer.Argument(metavar="JOB_ID...", help="Ids, or parts of one.", autocompletion=complete_job_id)
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="An id, or part of it.", autocompletion=complete_job_id)]
