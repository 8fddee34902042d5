"""Decides what becomes of a flow run whose process has died. It asks nobody and changes nothing."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple

from executor_adapter.prefect.crashes.records import FlowRunRecord


class Fate(enum.Enum):
    """What becomes of a flow run, and of its unfinished task runs."""

    ENDED = "ended"
    """It is final. Its task runs end as Crashed."""
    CRASH = "crash"
    """It becomes Crashed, and so do its task runs."""
    CANCEL = "cancel"
    """It was being cancelled: it becomes Cancelled, and its task runs Crashed."""
    CONTINUES = "continues"
    """Another process runs it, or will: nothing is changed."""


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
        run_count, is_deployed = self.run_counts.get(run.id), run.is_deployed or run.id == self.managed
        if run.is_final:
            return Fate.ENDED
        if is_deployed and run_count is not None and run.run_count > run_count:
            return Fate.CONTINUES  # It was rescheduled, and another process has begun its next run.
        match run.state_type:
            case "RUNNING":
                return Fate.CRASH
            case "CANCELLING":
                return Fate.CANCEL
            case "PAUSED":
                return Fate.CONTINUES if run.is_suspended else Fate.CRASH
            case "SCHEDULED" if run.state_name == "AwaitingRetry" and not is_deployed:
                return Fate.CRASH  # Only the dead process would have retried it.
            case _:
                return Fate.CONTINUES
