"""Rules of tables: how rows are validated, normalised and counted. One module per subject.

A table in `config.yaml` names its rules by `schema`. Rules are loaded where they are used, in a worker, because pandas
and pandera take a second to import.
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

_MODULES = {
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

NAMES = tuple(_MODULES)

VERSION = 1
"""Raise this when a rule changes: partitions that older rules processed are then processed again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The rules of one table.

    `schema` defines the columns, their types and their checks; no two rows may have the same `key`. `normalise` maps
    valid rows to the rows that are kept, one to one. `measures` (name -> (column, how)) are computed for each group of
    the `group_by` columns; the measures of two sets of rows can be combined to those of both together.
    """

    schema: pa.DataFrameSchema
    key: tuple[str, ...]
    normalise: Callable[[pd.DataFrame], pd.DataFrame]
    group_by: tuple[str, ...]
    measures: Mapping[str, tuple[str, Measure]]


def load(name: str) -> Rules:
    """Return the rules called `name`, one of NAMES."""
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    rules: Rules = getattr(module, name.upper())
    return rules
