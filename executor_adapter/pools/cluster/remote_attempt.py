"""An attempt as its node knows it."""

from __future__ import annotations

from executor_adapter.pools.base import Assignment
from executor_adapter.pools.transport.payload import Payload


class _Named:
    """Stands for the job of an attempt, of which this process knows the id alone."""

    __slots__ = ("job_id",)

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id


class RemoteAttempt(Assignment):
    """An attempt that a head has sent."""

    __slots__ = ("is_told", "returns", "seq")

    def __init__(self, seq: int, number: int, job_id: str, payload: Payload) -> None:
        super().__init__(_Named(job_id), number, payload)  # type: ignore[arg-type]
        self.seq = seq
        self.is_told = False
        """Whether the head knows that it has started."""
        self.returns = False
        """Whether the head wants it back."""
