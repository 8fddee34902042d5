"""Tests jobs of a program that imports an engine just now."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.waiting import PATIENCE

PREPARE_WHILE_IMPORTING = """
import importlib
import sys
import threading
from executor_adapter import Job
from executor_adapter.pools.cluster.engines import dask, ray

engine, pool = {"dask": ("distributed", dask.DaskPool), "ray": ("ray", ray.RayPool)}[sys.argv[1]]
job = Job(function="operator:neg", args=(1,), pool=sys.argv[1])
pool.prepare(job)
assert engine not in sys.modules
importing = threading.Thread(target=importlib.import_module, args=(engine,))
importing.start()
while importing.is_alive():
    pool.prepare(job)
"""


@pytest.mark.parametrize("pool", ["dask", "ray"])
def test_jobs_are_submitted_while_another_thread_imports_the_engine(pool: str) -> None:
    """A job is prepared before, during and after the import of its engine, and does not start that import."""
    subprocess.run([sys.executable, "-c", PREPARE_WHILE_IMPORTING, pool], check=True, timeout=PATIENCE)
