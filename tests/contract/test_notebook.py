"""Jobs in a notebook: what a cell defines runs in every pool, futures are awaited, and objects show themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.notebook import CellError, Notebook, notebook

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Of the sockets of jupyter_client.

FIRST_CELL = """
import os

from executor_adapter import Job, JobExecutor

executor = JobExecutor(max_workers=2)
factor = 2

def double(number):
    if number < 0:
        raise ValueError(f"<b>{number}</b>")
    return factor * number, os.getpid()

async def slow_double(number):
    import asyncio
    await asyncio.sleep(0.01)
    return factor * number
"""


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    """A kernel that has run the first cell."""
    with notebook(tmp_path_factory.mktemp("notebook"), {}) as started:
        started.run(FIRST_CELL)
        yield started
        started.run("executor.shutdown()")


def test_a_function_of_a_cell_runs_in_a_process(kernel: Notebook) -> None:
    """A function that a cell defines goes to a worker process by value, with the globals that it uses."""
    shown = kernel.run(
        "value, pid = executor.options(pool='process').call(double, 21).result()\n(value, pid != os.getpid())"
    )
    assert shown["text/plain"] == "(42, True)"


def test_a_cell_that_is_changed_counts(kernel: Notebook) -> None:
    """A function that a later cell defines anew is the one that runs."""
    kernel.run("def version():\n    return 1\nexecutor.options(pool='process').call(version).result()")
    shown = kernel.run("def version():\n    return 2\nexecutor.options(pool='process').call(version).result()")
    assert shown["text/plain"] == "2"


def test_a_future_is_awaited_at_top_level(kernel: Notebook) -> None:
    """`await future` works in a cell, whose event loop runs already, for functions and for coroutine functions."""
    shown = kernel.run(
        "import asyncio\n"
        "first = executor.options(pool='process').call(double, 1)\n"
        "(await first)[0], await executor.call(slow_double, 2), "
        "await asyncio.gather(executor.call(slow_double, 3), executor.call(slow_double, 4))"
    )
    assert shown["text/plain"] == "(2, 4, [6, 8])"


def test_a_failed_job_raises_in_its_cell(kernel: Notebook) -> None:
    """The exception of the function is raised where the future is awaited."""
    with pytest.raises(CellError, match="ValueError"):
        kernel.run("await executor.options(retry_attempts=0, pool='process').call(double, -1)")


def test_results_show_themselves(kernel: Notebook) -> None:
    """The results of many jobs are a table, in which text of the jobs is escaped."""
    kernel.run("from executor_adapter import JobResults")
    shown = kernel.run("JobResults(executor.map(double, [1, -1], retry_attempts=0))")["text/html"]
    assert "2 jobs: 1 completed, 1 failed" in shown
    assert "&lt;b&gt;-1&lt;/b&gt;" in shown
    assert "<b>-1</b>" not in shown


def test_a_job_and_its_future_show_themselves(kernel: Notebook) -> None:
    """A job and its future are a table with the function, the status and the error."""
    kernel.run("job = Job(function=double, args=(-1,), tool_name='<tool>', retry_attempts=0)")
    assert "pending" in kernel.run("job")["text/html"]
    shown = kernel.run("future = executor.submit(job)\nfuture.exception()\nfuture")["text/html"]
    for text in ("__main__:double", "failed", "EXECUTION_ERROR", "&lt;tool&gt;"):
        assert text in shown
    assert "<tool>" not in shown


def test_an_executor_shows_itself(kernel: Notebook) -> None:
    """An executor is a table of its counts."""
    shown = kernel.run("executor")["text/html"]
    assert "JobExecutor(2), open" in shown
    assert "completed" in shown


def test_an_interrupted_cell_ends_its_jobs(kernel: Notebook) -> None:
    """Interrupting a cell that waits raises KeyboardInterrupt and ends the job; the executor stays usable."""
    kernel.run("import time\nfuture = executor.options(pool='process').call(time.sleep, 3600)")
    kernel.run("while not future.running():\n    time.sleep(0.01)")
    with pytest.raises(CellError, match="KeyboardInterrupt"):
        kernel.run("print('waiting', flush=True)\nfuture.result()", interrupt_when="waiting")
    assert "JobCancelledError" in kernel.run("future.exception()")["text/plain"]
    assert kernel.run("executor.call(len, 'abc').result()")["text/plain"] == "3"
