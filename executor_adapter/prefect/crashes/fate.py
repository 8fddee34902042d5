"""Decides what becomes of a flow run whose process has died. It asks nobody and changes nothing."""

from __future__ import annotations

import enum

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


def fate_of(run: FlowRunRecord, run_count: int | None) -> Fate:
    """Return what becomes of a flow run whose process has died.

    `run_count` is the number of the run that the dead process had begun; None if it is not known.
    """
    if run.is_final:
        return Fate.ENDED
    if run.is_deployed and run_count is not None and run.run_count > run_count:
        return Fate.CONTINUES  # It was rescheduled, and another process has begun its next run.
    match run.state_type:
        case "RUNNING":
            return Fate.CRASH
        case "CANCELLING":
            return Fate.CANCEL
        case "PAUSED":
            return Fate.CONTINUES if run.is_suspended else Fate.CRASH
        case "SCHEDULED" if run.state_name == "AwaitingRetry" and not run.is_deployed:
            return Fate.CRASH  # Only the dead process would have retried it.
        case _:
            return Fate.CONTINUES
