"""The picture of the report: the mean departure delay by month and origin. Plain functions, run in a worker."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from tasks import lake, rules, stages

SCHEMA = "flights"
"""The rules whose measures are drawn."""


def draw_delays(root: Path, tool: str, table: str) -> dict[str, Any]:
    """Draw the delays of a table in the lake, to `<lake>/reports/<tool>/<table>.png`; that path is `png` of the
    result. Where nothing is processed yet there is nothing to draw, and it is None.
    """
    counted = measures(root, tool, table, SCHEMA)
    if counted.empty:
        return {"records_processed": 0, "png": None}
    path = root / "reports" / tool / f"{table}.png"
    lake.write_file(path, to_png(mean_delays(counted)))
    return {"records_processed": len(counted), "png": str(path)}


def measures(root: Path, tool: str, table: str, schema: str) -> pd.DataFrame:
    """The measures of all processed partitions of a table together; empty where there are none."""
    by = rules.load(schema)
    parts = [
        lake.read(partition).to_pandas()
        for partition in lake.partitions(root, "aggregates", tool, table)
        if lake.complete(partition.at("processed")) is not None
    ]
    # A partition without rows has no measures.
    counted = [part for part in parts if set(by.measures) <= set(part.columns)]
    return stages.combine(counted, by) if counted else pd.DataFrame(columns=[*by.by, *by.measures])


def mean_delays(counted: pd.DataFrame) -> pd.DataFrame:
    """Minutes, a row a month and a column an origin, from the measures of flights."""
    mean = counted["dep_delay_sum"] / counted["departed"]
    return counted.assign(mean=mean).pivot(index="month", columns="origin", values="mean").astype("float64")


def to_png(delays: pd.DataFrame) -> bytes:
    # A Figure of its own, not pyplot's: that one keeps state, and looks for a screen.
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    axes = figure.subplots()
    for origin, minutes in delays.items():
        axes.plot(delays.index, minutes, marker="o", label=str(origin))
    axes.set(xlabel="month", ylabel="minutes", title="Mean departure delay by month and origin")
    axes.set_xticks(list(delays.index))
    axes.grid(alpha=0.3)
    axes.legend(title="origin")
    content = BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()
