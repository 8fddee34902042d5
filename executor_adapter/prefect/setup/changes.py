"""The result of a bootstrap: what it did, or would do, about each thing."""

from __future__ import annotations

from dataclasses import dataclass, replace
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


def different(now: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Return what of `now` differs from `wanted`, as `field: value, not value`."""
    keys = dict.fromkeys([*now, *wanted])
    return [f"{key}: {now.get(key)}, not {wanted.get(key)}" for key in keys if now.get(key) != wanted.get(key)]


def with_kept(change: BootstrapChange, kept: list[str]) -> BootstrapChange:
    """Return `change` of a thing of which what `kept` says also differs from the plan, and stays as people set it."""
    if not kept:
        return change
    outcome = BootstrapOutcome.KEPT if change.outcome is BootstrapOutcome.UNCHANGED else change.outcome
    detail = ", ".join([*filter(None, [change.detail]), *kept])
    return replace(change, outcome=outcome, detail=detail)
