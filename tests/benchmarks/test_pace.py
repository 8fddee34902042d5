"""What each number that paces the mirror is worth: simulated servers with it and without it."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from types import ModuleType
from typing import Any

import pytest

from executor_adapter.prefect.mirror import sender, timeline
from tests.benchmarks.figures import Report, Row
from tests.benchmarks.paced import Outcome, changed, measure

SMALL = {"per_second": 50, "write": 1, "busy": 0.3}
"""A server for which each request is work: 0.3 s of it."""
UNSTEADY = {"per_second": 1_200, "write": 20, "busy": 0.3, "swing": 10}
"""One whose speed falls to an eighth every other ten seconds."""
TUNED = {"per_second": 3_000, "write": 500, "busy": 0.02}
"""One that writes up to 500 events at once."""

seconds, waited = attrgetter("seconds"), attrgetter("waited")
asked, dropped, states = attrgetter("questions"), attrgetter("dropped"), attrgetter("states")
again = attrgetter("sent_again")

CASES: list[tuple[ModuleType, str, float, str, Callable[[Outcome], float], dict[str, Any]]] = [
    (sender, "MIN_WINDOW", 30, "seconds", seconds, {"jobs": 1_000, **SMALL}),
    (sender, "MAX_WINDOW", 30_000, "dropped, in a hurry", dropped, {"jobs": 20_000, "is_hurried": True, **TUNED}),
    (sender, "MAX_WINDOW", 30_000, "seconds of waiting", waited, {"jobs": 30_000, "swing": 10, **TUNED}),
    (sender, "MAX_BATCH_SIZE", 200, "seconds", seconds, {"jobs": 20_000, **TUNED}),
    (sender, "WINDOW_INCREASE", 0, "seconds", seconds, {"jobs": 12_000, **UNSTEADY}),
    (sender, "SLOW_SECONDS", 2.0, "seconds", seconds, {"jobs": 12_000, **UNSTEADY}),
    (sender, "SLOW_SECONDS", 16.0, "seconds of waiting", waited, {"jobs": 1_000, **SMALL}),
    (sender, "CHECKS", 1, "seconds", seconds, {"jobs": 12_000, "swing": 10, **TUNED}),
    (sender, "CHECKS", 30, "questions", asked, {"jobs": 3_000}),
    (sender, "MIN_CHECK_INTERVAL", 0.3, "seconds of waiting", waited, {"jobs": 100, "starts": 10.0}),
    (sender, "MAX_CHECK_INTERVAL", 5.0, "seconds of waiting", waited, {"jobs": 5_000, "starts": 150.0, **UNSTEADY}),
    (sender, "MAX_UNLISTED_EVENTS", 80_000, "dropped", dropped, {"jobs": 20_000, "listed": 100.0, **TUNED}),
    (sender, "LISTING_STALL_TIMEOUT", math.inf, "seconds", seconds, {"jobs": 20_000, "listed": 0.001, **TUNED}),
    (sender, "RECORDING_STALL_TIMEOUT", math.inf, "seconds", seconds, {"jobs": 200, "lost_at": [0.2]}),
    (sender, "RECORDING_STALL_TIMEOUT", 1.0, "sent again", again, {"jobs": 900, "per_second": 50, "write": 200}),
    (sender, "SHORT_COUNT_TIMEOUT", 0.0, "sent again", again, {"jobs": 3_000, "overtakes": True}),
    (timeline, "UNSENT_LIMIT", 5_000, "seconds", seconds, {"jobs": 3_000, **SMALL}),
    (timeline, "FEW_UNSENT", 500, "seconds, in a hurry", seconds, {"jobs": 160, "is_hurried": True, **SMALL}),
]


@pytest.mark.bench
@pytest.mark.parametrize(("module", "name", "other", "what", "figure_of", "load"), CASES)
def test_pace(
    report: Report,
    module: ModuleType,
    name: str,
    other: float,
    what: str,
    figure_of: Callable[[Outcome], float],
    load: dict[str, Any],
) -> None:
    """A number that costs nothing to leave out has no place."""
    value = getattr(module, name)
    with_it = measure(**load)
    with changed(module, **{name: other}):
        without = measure(**load)
    share = figure_of(with_it) / max(figure_of(without), 1e-9)
    text = f"{name} {value:,} beside {other:,}: {what}, {load}"
    report.add(
        [Row(what=text, ours=with_it.shown, beside=without.shown, figure=share, at_most=1.0)],
    )
