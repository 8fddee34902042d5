"""Flows in a notebook: `run_jobs`, `arun_jobs` and job tasks in a kernel, whose event loop runs already."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.notebook import CellError, Notebook, notebook
from tests.prefect.conftest import Api

pytestmark = [
    pytest.mark.chaos,  # The kernel takes as long to start and to import Prefect as many other tests together.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Of the sockets of jupyter_client.
]

FIRST_CELL = """
import os
from prefect import flow
from prefect.context import FlowRunContext
from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import JobTaskRunner, arun_jobs, job_task, run_jobs

def double(number):
    if number < 0:
        raise ValueError("it is negative")
    return 2 * number

def jobs(*numbers, pool="process"):
    return [Job(function=double, args=(number,), pool=pool, retry_attempts=0) for number in numbers]
"""


@pytest.fixture(scope="module")
def kernel(prefect_api: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """A kernel that has run the first cell, beside a Prefect server."""
    with notebook(tmp_path_factory.mktemp("notebook"), {"PREFECT_API_URL": prefect_api}) as started:
        started.run(FIRST_CELL)
        yield started


SYNC = """
@flow
def sync_flow(pool):
    flow_run_id = FlowRunContext.get().flow_run.id
    return str(flow_run_id), [result.value for result in run_jobs(jobs(1, 2, 3, pool=pool))]

flow_run_id, values = sync_flow({pool!r})
print(flow_run_id)
values
"""
ASYNC = """
@flow
async def async_flow(pool):
    flow_run_id = FlowRunContext.get().flow_run.id
    return str(flow_run_id), [result.value for result in await arun_jobs(jobs(1, 2, 3, pool=pool))]

flow_run_id, values = await async_flow({pool!r})
print(flow_run_id)
values
"""
TASKS = """
@job_task(pool="process", retry_attempts=0)
def in_process(number):
    return number, os.getpid()

@flow(task_runner=JobTaskRunner(max_workers=2, pool="process"))
def with_tasks():
    return str(FlowRunContext.get().flow_run.id), [future.result() for future in in_process.map([1, 2])]

flow_run_id, values = with_tasks()
print(flow_run_id)
[number for number, _ in values], os.getpid() in {pid for _, pid in values}
"""


@pytest.mark.parametrize("pool", ["process", "thread"])
@pytest.mark.parametrize("cell", [SYNC, ASYNC], ids=["run_jobs", "arun_jobs"])
def test_jobs_run_in_a_flow_of_a_cell(kernel: Notebook, api: Api, cell: str, pool: str) -> None:
    """A flow of a cell runs jobs of a function of a cell; the server has them all when the cell is done."""
    shown = kernel.run(cell.format(pool=pool))
    assert shown["text/plain"] == "[2, 4, 6]"
    task_runs = api.task_runs(shown["stdout"].strip())
    assert [task_run["state_name"] for task_run in task_runs] == ["Completed"] * 3


def test_a_job_task_of_a_cell_runs_in_a_process(kernel: Notebook) -> None:
    """A job task that a cell defines runs in a worker process, under a JobTaskRunner."""
    assert kernel.run(TASKS)["text/plain"] == "([1, 2], False)"


def test_a_failed_job_raises_in_its_cell(kernel: Notebook) -> None:
    """What a failed job raises in the flow is raised in the cell."""
    with pytest.raises(CellError, match="it is negative"):
        kernel.run("@flow\ndef failing():\n    run_jobs(jobs(1, -1))[1].unwrap()\nfailing()")


def test_an_interrupted_cell_cancels_its_jobs(kernel: Notebook) -> None:
    """Interrupting a cell cancels the jobs of its flow, ends their processes, and leaves the kernel usable."""
    with pytest.raises(CellError, match=r"KeyboardInterrupt|JobCancelledError|CancelledError"):
        kernel.run(
            "import threading, time\n"
            "threading.Timer(2.0, print, ['now']).start()\n"
            "@flow\ndef sleeping():\n"
            "    return run_jobs([Job(function=time.sleep, args=(3600,), pool='process')])\n"
            "sleeping()",
            interrupt_when="now",
        )
    assert kernel.run(SYNC.format(pool="process"))["text/plain"] == "[2, 4, 6]"
