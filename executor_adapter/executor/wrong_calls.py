"""Says what is wrong with a call of a JobExecutor that does not fit, such as `submit(function, 1)`."""

from __future__ import annotations

from executor_adapter.job import explain_calls, job_instead

explain_executor_calls = explain_calls(submit=job_instead, run=job_instead)
"""Decorates the class."""
