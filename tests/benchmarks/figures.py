"""Measured figures: medians with their spread, rounds of several contestants, and the table of results and targets."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Figures:
    """The values of several runs of one measurement, in their order."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def percentile(self, share: float) -> float:
        """Return the smallest value that at least `share` of all values do not exceed."""
        ordered = sorted(self.values)
        return ordered[max(0, -(-round(share * 1000) * len(ordered) // 1000) - 1)]

    def over(self, other: Figures) -> Figures:
        """Return the ratios of each round; a slow machine slows both sides of a round."""
        return Figures(tuple(mine / its for mine, its in zip(self.values, other.values, strict=True)))

    def summary(self, form: str = ",.0f", scale: float = 1.0) -> str:
        """Return the median with the lowest and the highest value."""
        low, high = min(self.values) * scale, max(self.values) * scale
        return f"{self.median * scale:{form}} ({low:{form}} to {high:{form}})"


def in_turn(contestants: Mapping[str, Callable[[], float]], rounds: int = ROUNDS) -> dict[str, Figures]:
    """Measure each contestant once per round, so that other load on the machine affects all alike."""
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            gc.collect()
            values[name].append(measure())
    return {name: Figures(tuple(measured)) for name, measured in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table.

    `figure` must be `at_least` or `at_most` its target; without a target it is only shown. `rounds` has the values
    behind it, by contestant.
    """

    what: str
    ours: str
    beside: str = ""
    figure: float
    form: str = ".2f"
    at_least: float | None = None
    at_most: float | None = None
    rounds: Mapping[str, Figures] = field(default_factory=dict)

    @property
    def is_met(self) -> bool:
        low = self.at_least is None or self.figure >= self.at_least
        return low and (self.at_most is None or self.figure <= self.at_most)

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:{self.form}}"
        return "" if self.at_most is None else f"<= {self.at_most:{self.form}}"


class Report:
    """Collects rows with the load of the machine at that time, and prints them at once and again at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[Row, float]] = []

    def add(self, rows: Sequence[Row]) -> None:
        fresh = [(row, os.getloadavg()[0]) for row in rows]
        self.rows += fresh
        _show(fresh)

    def show(self) -> None:
        if len(self.rows) > 1:
            _show(self.rows)


def _show(rows: Sequence[tuple[Row, float]]) -> None:
    table = Table("measured", "ours", "beside it", "figure", "target", "met", "load", show_lines=False)
    for row, load in rows:
        met = ("[green]yes[/]" if row.is_met else "[red]no[/]") if row.target else ""
        table.add_row(row.what, row.ours, row.beside, f"{row.figure:{row.form}}", row.target, met, f"{load:.1f}")
    console = Console(width=170)
    console.print()
    console.print(table)
