"""The time limits of a process that is about to end and waits for the Prefect server.

A signal, a cancelled flow run or an exception leaves only seconds: then only final states are sent, and what the server
has not recorded in time is left in the outbox.
"""

from __future__ import annotations

import time

HURRIED_CLOSE_SECONDS = 4.0
"""Time for the final states when a mirror is closed in a hurry, from the moment the hurry began."""

MIN_HURRIED_CLOSE_SECONDS = 1.5
"""Minimum time for the final states, however long the jobs took to end."""


def remaining_close_seconds(hurried_since: float) -> float:
    """Return the seconds left for the server, where the hurry began at the monotonic time `hurried_since`."""
    return max(MIN_HURRIED_CLOSE_SECONDS, HURRIED_CLOSE_SECONDS - (time.monotonic() - hurried_since))
