"""Says in sentences and a plot what the demo's tables hold. config.yaml names the function as `summary`."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import duckdb
import pandas as pd
from matplotlib.figure import Figure

from executor_adapter.pipeline import ConfiguredTable
from executor_adapter.pipeline.flows import Summary


def summarise_flights(tables: Mapping[str, ConfiguredTable]) -> Summary:
    """Return a sentence about the flights, and a plot of their mean delays by month and origin."""
    if not tables["flights"].processed.windows():
        return Summary(lines=["flights: no rows yet"])
    counted = count_flights(tables["flights"].processed.folder)
    total = counted.sum(numeric_only=True)
    line = (
        f"flights: {total['flights']:,.0f}, {total['cancelled']:,.0f} cancelled, {total['diverted']:,.0f} diverted, "
        f"on average {total['dep_delay_sum'] / total['departed']:.1f} minutes late at departure"
    )
    return Summary(lines=[line], png=to_png(mean_delays(counted)), title="Mean departure delay by month and origin")


def count_flights(folder: Path) -> pd.DataFrame:
    """Return how many flights there were, and how late they were, one row a month and origin."""
    counted: pd.DataFrame = duckdb.execute(
        """
        SELECT month, origin, count(*) AS flights, count(dep_delay) AS departed, sum(dep_delay) AS dep_delay_sum,
            count_if(cancelled) AS cancelled, count_if(diverted) AS diverted
        FROM read_parquet(?) GROUP BY ALL ORDER BY ALL
        """,
        [str(folder)],
    ).df()
    return counted


def mean_delays(counted: pd.DataFrame) -> pd.DataFrame:
    """Return the mean delays in minutes, one row per month and one column per origin."""
    mean = counted["dep_delay_sum"] / counted["departed"]
    return counted.assign(mean=mean).pivot(index="month", columns="origin", values="mean")


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
