"""Waits for the events that Prefect sends."""

from __future__ import annotations

import threading

from prefect.events.worker import EventsWorker

FLUSH_TIMEOUT = 2.0
"""Seconds for Prefect's events to be sent."""


def flush_events(timeout: float = FLUSH_TIMEOUT) -> None:
    """Wait until the events of this process are sent, at most `timeout` seconds.

    For a process that is about to end by a signal, as Prefect ends a flow's process: queued events would be lost.
    """
    # `wait_until_empty` has no timeout, and an unreachable server must not hold up the end.
    waiting = threading.Thread(target=EventsWorker.instance().wait_until_empty, name="flush-events", daemon=True)
    waiting.start()
    waiting.join(timeout)
