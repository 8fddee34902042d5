"""How tests wait for what must come true: one patience for all of them.

    wait_for(path.exists)

A slow machine is given more by the environment: `TEST_PATIENCE=3 make test` waits three times as long.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 200.0 * float(os.environ.get("TEST_PATIENCE", "1"))
"""Seconds after which a test fails that waits for something; no test needs so many where nothing is wrong."""


def wait_for(condition: Callable[[], Any], *, what: object = "") -> Any:
    """Call `condition()` again and again until it returns a true value, and return that.

    Raises:
        AssertionError: it returned none within `PATIENCE`; the error says `what`, or the value of `what()`.
    """
    until = time.monotonic() + PATIENCE
    pause = 0.01
    while not (value := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"not within {PATIENCE:.0f} s: {what() if callable(what) else what or condition}")
        time.sleep(pause)
        pause = min(2 * pause, 0.1)  # A request to a server costs it 10 ms of a core that the tests share.
    return value
