"""The store that a command works on, and the jobs that are meant."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.store import JobFilter, JobRecord, JobStore, StoreUnavailable, open_store

StoreOption = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="The store; default: store.url of the configuration.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="The configuration; default: config.yaml here.")
]

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def store_url(store: str | None, config: Path | None) -> str | None:
    return store or load_config(config).store.url


@contextlib.contextmanager
def opened(store: str | None, config: Path | None) -> Iterator[JobStore]:
    """The store that was named, else the configuration's.

    Raises:
        ConfigurationError: neither names one, or one in memory, which no other process sees.
        StoreUnavailable: it cannot be opened.
    """
    url = store_url(store, config)
    if url is None:
        raise ConfigurationError(
            "there is no store to look into: set store.url in config.yaml (sqlite:///jobs.db), or give --store URL"
        )
    if url.startswith("memory"):
        raise ConfigurationError(f"store.url: {url!r} is seen by its own program alone: give sqlite:///jobs.db")
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
        raise StoreUnavailable(
            f"there is no file {path}: no program has kept jobs there yet; see --store and store.url"
        )


def find_job(store: JobStore, job_id: str) -> JobRecord:
    """The job with this id, or the only one with this part of an id.

    Raises:
        NoSuchJob: there is none, or more than one.
    """
    record = store.get(job_id)
    if record is not None:
        return record
    found = [r for r in store.find(JobFilter(text=job_id), limit=50).records if job_id in r.job_id]
    if len(found) == 1:
        return found[0]
    if not found:
        raise NoSuchJob(f"no job has the id {job_id!r}, or one with that in it")
    raise NoSuchJob(f"{len(found)} jobs or more have {job_id!r} in their id: give more of it")


class NoSuchJob(Exception):
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
    return float(match[1]) * _UNITS[match[2]]


def complete_job_id(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """For the shell: the newest jobs whose id has that in it."""
    try:
        with opened(ctx.params.get("store"), ctx.params.get("config_file")) as store:
            records = store.find(JobFilter(text=incomplete or None), limit=50).records
            return [(r.job_id, f"{r.status} {r.job_type}") for r in records if r.job_id.startswith(incomplete)]
    except Exception:
        return []  # a shell that completes is no place for complaints


JobIds = Annotated[
    list[str], typer.Argument(metavar="JOB_ID...", help="Ids, or parts of one.", autocompletion=complete_job_id)
]
JobId = Annotated[str, typer.Argument(metavar="JOB_ID", help="An id, or part of it.", autocompletion=complete_job_id)]
