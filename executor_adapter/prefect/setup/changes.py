"""The result of a bootstrap: what it did, or would do, about each thing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class BootstrapOutcome(StrEnum):
    """What became of one thing on the server."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"
    KEPT = "kept"
    """It differs from the plan, and stays as it is: people set it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapChange:
    """One thing on the server, and what a bootstrap did about it; in a dry run, what it would do."""

    kind: str
    name: str
    outcome: BootstrapOutcome
    detail: str = ""
    """What differs, as `field: old -> new`."""


def compare(kind: str, name: str, now: dict[str, Any] | None, wanted: dict[str, Any]) -> BootstrapChange:
    """Return the change that makes `wanted` of `now`; None stands for a thing that is missing."""
    if now is None:
        detail = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        return BootstrapChange(kind=kind, name=name, outcome=BootstrapOutcome.CREATED, detail=detail)
    different = [f"{key}: {now.get(key)} -> {value}" for key, value in wanted.items() if now.get(key) != value]
    outcome = BootstrapOutcome.CHANGED if different else BootstrapOutcome.UNCHANGED
    return BootstrapChange(kind=kind, name=name, outcome=outcome, detail=", ".join(different))
