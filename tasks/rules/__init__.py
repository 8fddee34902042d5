"""What the rows of a table must be like, what is made of them, and what is counted: one module a subject.

A table in `config.yaml` names its rules by `schema`. They are loaded where they are used, in a worker: pandas and
pandera take a second to import.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

Measure = Literal["sum", "count", "max"]

_HOMES = {
    "flights": "flights",
    "weather": "flights",
    "planes": "flights",
    "airports": "flights",
    "airlines": "flights",
    "flow_runs": "runs",
    "task_runs": "runs",
    "flow_run_states": "runs",
    "task_run_states": "runs",
}

NAMES = tuple(_HOMES)

VERSION = 1
"""To be raised when a rule changes: what was processed by older ones is then processed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one table.

    `schema` says the columns that are kept, their types and what holds of them; no two rows may have the same `key`.
    `normalise` maps rows that passed to rows as they are kept, one to one. `measures` are counted in groups of `by`:
    name -> (column, how), each such that the measures of two sets of rows give those of both together.
    """

    schema: pa.DataFrameSchema
    key: tuple[str, ...]
    normalise: Callable[[pd.DataFrame], pd.DataFrame]
    by: tuple[str, ...]
    measures: Mapping[str, tuple[str, Measure]]


def load(name: str) -> Rules:
    """The rules called `name`, one of NAMES."""
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    rules: Rules = getattr(module, name.upper())
    return rules
