"""Describes the death of a process, and keeps on disk those that no reporter could report: no server answered in time.

A sweep reports them later. The files are in PREFECT_HOME/executor-adapter/unreported. They hold the ids of flow runs,
and neither addresses nor credentials.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from prefect.settings import get_current_settings

from executor_adapter.job import uuid7
from executor_adapter.prefect.crashes.fate import Fate, fate_of
from executor_adapter.prefect.crashes.records import FlowRunRecord

logger = logging.getLogger("executor_adapter.prefect")


class Death(NamedTuple):
    """The death of a process that ran flows."""

    run_counts: Mapping[str, int | None]
    """The number of the current run of each of its flow runs, by the flow run's id; None if it is not known."""
    died_at: float | None = None
    """In seconds since the epoch; None if nobody has seen it."""
    managed: str | None = None
    """The id of the flow run that a runner or worker had started the process for."""

    def fate_of(self, run: FlowRunRecord) -> Fate:
        """Return what becomes of a flow run of the dead process."""
        if run.id == self.managed:
            run = dataclasses.replace(run, is_deployed=True)
        return fate_of(run, self.run_counts.get(run.id))


class UnreportedDeaths:
    """The deaths that one server does not know of. `server` is its name."""

    def __init__(self, server: str, directory: Path | None = None) -> None:
        self.directory = directory or get_current_settings().home / "executor-adapter" / "unreported"
        self._prefix = hashlib.sha256(server.encode()).hexdigest()[:16]

    def keep(self, death: Death) -> None:
        """Write a death to disk.

        Raises:
            OSError: the disk is full, or cannot be written to.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.directory / f"{self._prefix}-{uuid7()}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(death._asdict()))
        new.rename(path)

    def paths(self) -> list[Path]:
        """Return the files, the oldest first."""
        return sorted(self.directory.glob(f"{self._prefix}-*.json"))

    def read(self) -> Iterator[tuple[Path, Death]]:
        """Yield the deaths with their files, which the caller removes. What is not a death is removed with a warning.

        Two processes may report a death at once: they send the same.
        """
        for path in self.paths():
            try:
                yield path, _parse(json.loads(path.read_bytes()))
            except FileNotFoundError:  # Another process has reported it.
                continue
            except OSError as error:  # Another user's, for example.
                logger.warning("cannot read %s, which describes the death of a process: %s", path, error.strerror)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                logger.warning("skipping %s, which does not describe the death of a process: %r", path, error)
                path.unlink(missing_ok=True)


def _parse(found: dict[str, Any]) -> Death:
    run_counts = {str(flow_run_id): int(count) for flow_run_id, count in found["run_counts"].items()}
    return Death(run_counts, float(found["died_at"]), found["managed"])
