"""The limits of one tool's jobs."""

from __future__ import annotations

from dataclasses import dataclass

from executor_adapter.job.validation import check_count, check_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLimit:
    """Limits the jobs that have the same `tool_name`.

    Raises:
        ValueError: a limit lets no job start, or is not a finite number.
    """

    max_concurrent: int | None = None
    """Attempts that may run at once; None for no limit."""
    rate: float | None = None
    """Starts a second, on average; None for no limit."""
    burst: int = 1
    """Starts that may follow one another at once after a pause."""
    buffer: float | None = None
    """The share of `rate` that is left unused, from 0 to below 1; None for `collection.rate_limit_buffer` of the
    settings."""

    def __post_init__(self) -> None:
        check_count("max_concurrent", self.max_concurrent, "lets no job start", or_none=", or None")
        if self.rate is not None:
            check_rate("rate", self.rate)
        check_count("burst", self.burst, "lets no job start")
        if self.buffer is not None and not 0 <= self.buffer < 1:
            raise ValueError(f"buffer={self.buffer} is not a share: use 0 to below 1")
