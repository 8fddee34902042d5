"""Data that goes from stage to stage on a cluster: what of it passes through the program."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from executor_adapter import Job, JobExecutor
from tests.benchmarks.apart import apart
from tests.benchmarks.clusters import ENGINES, EngineName, cluster_of
from tests.benchmarks.figures import Figures, Report, Row
from tests.contract.cluster.socket_bytes import bytes_by_socket, bytes_since

NUMBERS = 125_000_000
"""Numbers of 8 bytes that each stage gets and returns."""
STAGES = 4


def measure_stages(engine: EngineName, address: str) -> tuple[int, float]:
    """Return the bytes that this program has sent and received while 1 GB went through all stages, and the seconds."""
    with JobExecutor(2, address=address) as executor:
        executor.run(Job(function=np.zeros, args=(1,), pool=engine))
        before, began = bytes_by_socket(), time.perf_counter()
        data = executor.run(Job(function=np.zeros, args=(NUMBERS,), pool=engine, keep=True))
        for _ in range(STAGES):
            data = executor.run(Job(function=np.negative, args=(data,), pool=engine, keep=True))
        assert executor.run(Job(function=np.size, args=(data,), pool=engine)) == NUMBERS
        return bytes_since(before), time.perf_counter() - began


@pytest.mark.bench
@pytest.mark.parametrize("engine", ENGINES)
def test_data_of_stages(engine: EngineName, report: Report, tmp_path: Path) -> None:
    """1 GB that is made on the cluster and goes through four stages there."""
    with cluster_of(engine, tmp_path, slots=1) as (address, _):
        through, seconds = apart(measure_stages, engine, address)
    report.add(
        [
            Row(
                what=f"kB through the program while 1 GB went through {STAGES} stages on {engine.title()}",
                ours=f"{through / 1e3:.1f}, in {seconds:.1f} s",
                figure=through / 1e3,
                form=".1f",
                at_most=64.0,
                rounds={"ours": Figures((through / 1e3,))},
            )
        ]
    )
