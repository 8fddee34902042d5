"""JobTaskRunner compared with Prefect's runners, and the records of a default server after 6,000 tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.figures import Figures, Report, Row
from tests.benchmarks.prefect_server import prefect_server
from tests.benchmarks.runners import WORKERS, Runner, measure_runner

TASKS: dict[Runner, int] = {"jobs": 2_000, "threads": 2_000, "thread jobs": 2_000, "processes": 100}
COMPARED: list[tuple[Runner, str, Runner, str, float]] = [
    ("jobs", "processes", "processes", "ProcessPoolTaskRunner", 12.0),
    ("jobs", "processes", "threads", "ThreadPoolTaskRunner", 1.6),
    ("thread jobs", "threads", "threads", "ThreadPoolTaskRunner", 2.0),
]
ROUNDS = 3
MANY = 6_000


@pytest.mark.bench
def test_results(report: Report, tmp_path: Path) -> None:
    """Until the last result, with warm workers; the time for the records after that is shown apart."""
    rates: dict[Runner, list[float]] = {runner: [] for runner in TASKS}
    recording: dict[Runner, list[float]] = {runner: [] for runner in TASKS}
    with prefect_server("tuned", tmp_path) as server, server.environment():
        for _ in range(ROUNDS):
            for runner, tasks in TASKS.items():
                measured = apart(measure_runner, runner, tasks)
                rates[runner].append(measured["results"])
                recording[runner].append(measured["recording"])
    figures = {runner: Figures(tuple(values)) for runner, values in rates.items()}
    report.add(
        [
            Row(
                what=f"JobTaskRunner, {WORKERS} {workers}, tasks/s beside {name}",
                ours=f"{figures[ours].summary()}, then recorded in {max(recording[ours]):.0f} s",
                beside=figures[runner].summary(),
                figure=figures[ours].over(figures[runner]).median,
                at_least=wanted,
                rounds={"JobTaskRunner": figures[ours], name: figures[runner]},
            )
            for ours, workers, runner, name, wanted in COMPARED
        ]
    )


@pytest.mark.bench
def test_none_is_lost(report: Report, tmp_path: Path) -> None:
    """How many tasks a default server has not recorded when the flow returns."""
    lost: dict[Runner, int] = {}
    for runner in ("threads", "jobs"):
        with prefect_server("default", tmp_path / runner) as server, server.environment():
            measured = apart(measure_runner, runner, MANY)
            lost[runner] = MANY + 2 * WORKERS - server.count(measured["flow_run_id"], "Completed")
    report.add(
        [
            Row(
                what=f"of {MANY} tasks not recorded as Completed by a default server at the flow's end",
                ours=str(lost["jobs"]),
                beside=f"ThreadPoolTaskRunner {lost['threads']}",
                figure=lost["jobs"],
                form=".0f",
                at_most=0,
            )
        ]
    )
