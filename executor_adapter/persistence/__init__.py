"""Persistence: what an executor writes to its store, and how jobs are recovered from it."""

from __future__ import annotations

from executor_adapter.persistence.history import QueueHistory
from executor_adapter.persistence.job_persistence import JobPersistence
from executor_adapter.persistence.pending_writes import was_cut_off

__all__ = ["JobPersistence", "QueueHistory", "was_cut_off"]
