"""Leases for attempts of one shape: what a job with `resources` needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from executor_adapter.job import Shape


@dataclass(slots=True, eq=False)
class ShapedLease:
    """The right to run one attempt of this shape at a time on a node. Short calls are never queued behind it."""

    number: int
    shape: Shape
    since: float = 0.0
    """When the pool got it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment of its attempts, such as those that name its GPUs."""
    was_idle: bool = False
    """Whether it was free when the pool last looked for idle leases."""
    is_retiring: bool = False
    """Whether it goes back as soon as no attempt uses it, for the sake of others."""


class Starving(NamedTuple):
    """A shape that has no lease, and jobs that wait for one."""

    leases: int
    """How many are wanted."""
    nodes: Collection[str] | None
    """The names of the nodes that could hold one; None: all."""
