"""The findings of the checks of `executor-adapter doctor`, and what a program that is ready must have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

ready_checks: dict[str, Callable[[], str | None]] = {}
"""By name, what a program needs besides its stores: each returns what is wrong, or None."""


class Level(StrEnum):
    """Ranks how serious a finding is."""

    FINE = "fine"
    WARNING = "warning"
    """It works, but not as well as it could, or not for long."""
    WRONG = "wrong"
    """Jobs will fail, or cannot start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Describes the result of one check, and what to do about it."""

    check: str
    level: Level
    found: str
    way_out: str = ""


def fine(check: str, found: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(check=check, level=Level.FINE, found=found)


def warning(check: str, found: str, way_out: str) -> Finding:
    """Return a finding that does not stop jobs from running."""
    return Finding(check=check, level=Level.WARNING, found=found, way_out=way_out)


def wrong(check: str, found: str, way_out: str) -> Finding:
    """Return a finding that keeps jobs from running as they should."""
    return Finding(check=check, level=Level.WRONG, found=found, way_out=way_out)
