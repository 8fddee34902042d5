"""An executor as notebooks show it: its counts now, and the jobs that have a running attempt."""

from __future__ import annotations

from typing import Any

from executor_adapter.job import html_of_jobs, html_table

COUNTS = ("pending", "running", "retrying", "completed", "failed", "cancelled")


def html_of_executor(executor: Any) -> str:
    """Return HTML for a JobExecutor. This module does not import that class: its module imports this one."""
    stats, running = executor.stats(), executor.running()
    state = "shut down" if executor.is_closed else "shutting down" if executor.is_shutting_down else "open"
    counts = [getattr(stats, f"jobs_{name}") for name in COUNTS]
    shown = html_table(f"JobExecutor({executor.max_workers}), {state}", COUNTS, [counts])
    return shown + (html_of_jobs("running", running) if running else "")
