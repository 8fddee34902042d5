"""The first `executor-adapter pipeline run` of a new user, and the second, beside a stock Prefect flow with one task.

Each begins in an empty home and an empty folder, and starts an embedded server, which creates its database.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.benchmarks.figures import Report
from tests.benchmarks.usage import Usage, row, usage

ROUNDS = 3
RUN = ("executor_adapter.cli", "pipeline", "run")
STOCK = """
from prefect import flow, task


@task
def add(a: int, b: int) -> int:
    return a + b


@flow
def stock() -> None:
    print(add(1, 2))


if __name__ == "__main__":
    stock()
"""


def new_user(directory: Path) -> tuple[Path, dict[str, str]]:
    """Make an empty folder; return it, and an environment with an empty home and no settings of Prefect or ours."""
    home, folder = directory / "home", directory / "shop"
    home.mkdir(parents=True)
    folder.mkdir()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "EXECUTOR_"))}
    # Prefect waits 20 seconds by itself, and the measurement would fail on a machine that is slower than that.
    patient = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    return folder, inherited | patient | {"HOME": str(home)}


def measure_starter(directory: Path) -> list[Usage]:
    """Measure the first and the second run of the starter."""
    folder, env = new_user(directory)
    usage("executor_adapter.cli", "pipeline", "init", cwd=folder, env=env)
    first, second = (usage(*RUN, cwd=folder, env=env) for _ in range(2))
    assert "shop: 5 new rows (orders orders.csv)" in first.printed
    assert "shop: 5 new rows" not in second.printed
    return [first, second]


def measure_stock(directory: Path) -> list[Usage]:
    """Measure the first and the second run of a flow with one task."""
    folder, env = new_user(directory)
    (folder / "stock.py").write_text(STOCK)
    both = [usage("stock", cwd=folder, env=env) for _ in range(2)]
    assert [run.printed for run in both] == ["3\n"] * 2
    return both


@pytest.mark.bench
def test_first_run(report: Report, tmp_path: Path) -> None:
    """The seconds of the first run, which are bounded, and of the second; CPU moves less with other load."""
    rounds = [(measure_starter(tmp_path / f"{n}"), measure_stock(tmp_path / f"{n}-stock")) for n in range(ROUNDS)]
    for which, said, at_most in ((0, "first", 15), (1, "second", None)):
        ours, stock = ([both[contestant][which] for both in rounds] for contestant in range(2))
        what, beside = f"{said} run of the starter, with its server", {"a Prefect flow with one task": stock}
        report.add(
            [
                row(f"{what}: seconds", "wall", ours, beside, at_most),
                row(f"{what}: CPU seconds", "cpu", ours, beside),
            ]
        )
