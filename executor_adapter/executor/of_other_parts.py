"""What other parts of the package add to the defaults of executors, without loading them."""

from __future__ import annotations

from collections.abc import Callable

thread_settings: list[Callable[[], int | None]] = []
"""Settings that say how many threads an executor runs."""
worker_preloads: list[str] = []
"""Modules that every process pool preloads, besides the configured ones."""


def read_threads_from(setting: Callable[[], int | None]) -> None:
    """Let executors that are made from now on run as many threads as this setting says, where nothing else is said."""
    thread_settings.append(setting)


def preload_in_workers(*modules: str) -> None:
    """Make process pools that are created from now on preload these modules, besides the configured ones.

    For code that runs around functions in a worker: imported on first use, it would count towards a job's limits.
    """
    worker_preloads.extend(modules)
