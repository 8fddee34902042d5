"""run_jobs compared with Prefect's task runners, until the last result and until the last record.

The variable BULK_JOBS sets another number of jobs than 2,000.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.benchmarks.apart import apart
from tests.benchmarks.bulk import WORKERS, measure_bare_jobs, measure_ceiling, measure_run_jobs, measure_task_runner
from tests.benchmarks.figures import Figures, Report, Row, in_turn
from tests.benchmarks.prefect_server import Kind, prefect_server

JOBS = int(os.environ.get("BULK_JOBS", "2000"))
TASKS_IN_PROCESSES = 100
"""They run at twenty per second."""
ROUNDS = 2
LARGE = 100_000


@pytest.mark.bench
@pytest.mark.parametrize(("kind", "target", "rounds"), [("default", 2.5, 1), ("tuned", 2.0, 2), ("postgresql", 2.0, 1)])
def test_recorded(report: Report, tmp_path: Path, kind: Kind, target: float, rounds: int) -> None:
    """Until the last final state is recorded. The CPU share of the server shows whether it is the limit."""
    with prefect_server(kind, tmp_path) as server, server.environment():
        apart(measure_run_jobs, 200, "auto")  # warm up the server
        shares = []
        measured: dict[str, list[float]] = {
            "auto": [],
            "full": [],
            "threads": [],
            "ceiling auto": [],
            "ceiling full": [],
        }
        for _ in range(rounds):
            used = server.cpu_seconds()
            measured["auto"].append(rate := apart(measure_run_jobs, JOBS, "auto")["recorded"])
            shares.append((server.cpu_seconds() - used) / (JOBS / rate))
            measured["full"].append(apart(measure_run_jobs, JOBS, "full")["recorded"])
            measured["threads"].append(apart(measure_task_runner, "threads", JOBS)["recorded"])
            for mode in ("auto", "full") if kind == "tuned" else ():
                measured[f"ceiling {mode}"].append(apart(measure_ceiling, JOBS, mode)["recorded"])
    figures = {name: Figures(tuple(values)) for name, values in measured.items() if values}
    report.add(
        [
            Row(
                what=f"run_jobs recorded/s, {kind} server, {mode!r}, beside ThreadPoolTaskRunner",
                ours=figures[mode].summary() + (f", server {max(shares):.0%} busy" if mode == "auto" else ""),
                beside=figures["threads"].summary(),
                figure=figures[mode].over(figures["threads"]).median,
                at_least=wanted,
                rounds={"run_jobs": figures[mode], "ThreadPoolTaskRunner": figures["threads"]},
            )
            for mode, wanted in (("auto", target), ("full", 1.0))
        ]
        + [
            Row(
                what=f"run_jobs recorded/s, {kind} server, {mode!r}, beside the maximum of the server",
                ours=figures[mode].summary(),
                beside=figures[f"ceiling {mode}"].summary(),
                figure=figures[mode].over(figures[f"ceiling {mode}"]).median,
                rounds={"run_jobs": figures[mode], "maximum": figures[f"ceiling {mode}"]},
            )
            for mode in ("auto", "full")
            if f"ceiling {mode}" in figures
        ]
    )


@pytest.mark.bench
def test_groups(report: Report, tmp_path: Path) -> None:
    """Until the last record, with a hundred jobs a task run beside a task run a job, in turn on one server."""
    with prefect_server("default", tmp_path) as server, server.environment():
        apart(measure_run_jobs, 200, "auto")  # warm up the server
        measured = in_turn(
            {
                "group=100": lambda: apart(measure_run_jobs, JOBS, "auto", group=100)["recorded"],
                "group=None": lambda: apart(measure_run_jobs, JOBS, "auto")["recorded"],
            },
            rounds=3,
        )
    ratio = measured["group=100"].over(measured["group=None"])
    report.add(
        [
            Row(
                what="run_jobs recorded/s, group=100 beside none",
                ours=measured["group=100"].summary(),
                beside=f"{measured['group=None'].summary()}, ratio {ratio.summary('.1f')}",
                figure=ratio.median,
                form=".1f",
                at_least=5,
                rounds=measured,
            )
        ]
    )


@pytest.mark.bench
def test_results(report: Report, tmp_path: Path) -> None:
    """Until the last result, in processes."""
    with prefect_server("default", tmp_path) as server, server.environment():
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(apart(measure_run_jobs, JOBS, "auto")["results"])
            theirs.append(apart(measure_task_runner, "processes", TASKS_IN_PROCESSES)["results"])
    figures, others = Figures(tuple(ours)), Figures(tuple(theirs))
    report.add(
        [
            Row(
                what=f"run_jobs to the last result, {WORKERS} processes, beside ProcessPoolTaskRunner",
                ours=figures.summary(),
                beside=others.summary(),
                figure=figures.over(others).median,
                form=".0f",
                at_least=100,
                rounds={"run_jobs": figures, "ProcessPoolTaskRunner": others},
            )
        ]
    )


@pytest.mark.bench
def test_cost(report: Report, tmp_path: Path) -> None:
    """The CPU that mirroring a job costs the flow's process."""
    with prefect_server("tuned", tmp_path) as server, server.environment():
        bare = [apart(measure_bare_jobs, 10_000)["cpu"] for _ in range(ROUNDS)]
        ours = [apart(measure_run_jobs, 10_000, "auto")["cpu"] for _ in range(ROUNDS)]
    mirrored, alone = Figures(tuple(ours)), Figures(tuple(bare))
    report.add(
        [
            Row(
                what="microseconds of CPU per job for run_jobs' mirror, beside the executor alone",
                ours=mirrored.summary(),
                beside=alone.summary(),
                figure=mirrored.median - alone.median,
                form=".0f",
                at_most=100,
                rounds={"run_jobs": mirrored, "executor": alone},
            )
        ]
    )


@pytest.mark.bench
def test_memory(report: Report, tmp_path: Path) -> None:
    """The peak memory of 100,000 jobs while the server is far behind."""
    with prefect_server("tuned", tmp_path) as server, server.environment():
        many = apart(measure_run_jobs, LARGE, "auto", weigh=True)
    report.add(
        [
            Row(
                what=f"peak MB above idle, {LARGE:,} jobs of run_jobs",
                ours=f"{many['recorded']:,.0f} recorded/s",
                figure=many["memory"] / 1e6,
                form=".0f",
                at_most=300,
            ),
        ]
    )
