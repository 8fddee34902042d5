"""Summarises a tool's processed rows in sentences and a plot. Plain functions that run in a worker."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tasks import lake, rules, stages
from tasks.job_log import log

RUNS = ("flow_runs", "task_runs")


def summarise(root: Path, tool_name: str, schemas: dict[str, str | None]) -> dict[str, Any]:
    """Return the summary of a tool, from the measures of its tables (name -> schema).

    `lines` are sentences, `png` is the path of a plot in the lake or None, `records_processed` counts measures.
    """
    lines: list[str] = []
    png, used = None, 0
    for table, schema in schemas.items():
        if schema not in ("flights", *RUNS):
            continue
        counted = read_measures(root, tool_name, table, schema)
        used += len(counted)
        if counted.empty:
            lines.append(f"{table.replace('_', ' ')}: no rows yet")
        elif schema in RUNS:
            lines.append(describe_runs(table, counted))
        else:
            lines.append(describe_flights(counted))
            png = root / "reports" / tool_name / f"{table}.png"
            lake.write_file(png, to_png(mean_delays(counted)))
    for line in lines:
        log("%s", line)
    return {"records_processed": used, "lines": lines, "png": None if png is None else str(png)}


def describe_flights(counted: pd.DataFrame) -> str:
    """Return a sentence about the flights, from their measures."""
    total = counted.sum(numeric_only=True)
    return (
        f"flights: {total['flights']:,.0f}, {total['cancelled']:,.0f} cancelled, {total['diverted']:,.0f} diverted, "
        f"on average {total['dep_delay_sum'] / total['departed']:.1f} minutes late at departure"
    )


def describe_runs(table: str, counted: pd.DataFrame) -> str:
    """Return a sentence about flow runs or task runs, from their measures."""
    runs, seconds = counted["runs"].sum(), counted["seconds_sum"].sum()
    return (
        f"{table.replace('_', ' ')}: {runs:,} finished, {counted['succeeded'].sum() / runs:.1%} of them succeeded, "
        f"{counted['retried'].sum():,} were retried, "
        f"{seconds / runs:.2f} s on average, {counted['seconds_max'].max():.2f} s the longest"
    )


def read_measures(root: Path, tool: str, table: str, schema: str) -> pd.DataFrame:
    """Return the combined measures of all processed partitions of a table; empty if there are none."""
    table_rules = rules.load(schema)
    parts = [
        lake.read(partition).to_pandas()
        for partition in lake.list_partitions(root, "aggregates", tool, table)
        if lake.find_manifest(partition.in_layer("processed")) is not None
    ]
    # A partition without rows has no measures.
    counted = [part for part in parts if set(table_rules.measures) <= set(part.columns)]
    return (
        stages.combine(counted, table_rules)
        if counted
        else pd.DataFrame(columns=[*table_rules.group_by, *table_rules.measures])
    )


def mean_delays(counted: pd.DataFrame) -> pd.DataFrame:
    """Return the mean delays in minutes, one row per month and one column per origin."""
    mean = counted["dep_delay_sum"] / counted["departed"]
    return counted.assign(mean=mean).pivot(index="month", columns="origin", values="mean").astype("float64")


def to_png(delays: pd.DataFrame) -> bytes:
    """Plot the mean delays as a PNG image."""
    # A plain Figure instead of pyplot, which keeps global state and looks for a screen.
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for origin, minutes in delays.items():
        axes.plot(delays.index, minutes, marker="o", label=str(origin))
    axes.set(xlabel="month", ylabel="minutes", title="Mean departure delay by month and origin")
    axes.set_xticks(list(delays.index))
    axes.set_ylim(bottom=min(0.0, float(delays.min().min())))
    axes.grid(alpha=0.3)
    axes.legend(title="origin")
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
