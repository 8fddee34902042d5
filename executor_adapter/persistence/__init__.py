"""Persistence: what an executor writes to its store, and how jobs are recovered from it."""

from __future__ import annotations

from executor_adapter.persistence.history import QueueHistory as QueueHistory
from executor_adapter.persistence.job_persistence import JobPersistence as JobPersistence
