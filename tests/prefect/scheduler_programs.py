"""Programs with a scheduler that do not mention Prefect.

python -m tests.prefect.scheduler_programs NAME ARGUMENTS
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from executor_adapter import Job
from executor_adapter.scheduler import CollectionScheduler, ProcessingScheduler, collection_scheduler


async def until_there(path: str) -> str:
    """Wait until the file `path` exists; a file beside it shows that this waits."""
    Path(f"{path}.waits").touch()
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    return path


async def finished(scheduler: CollectionScheduler | ProcessingScheduler, job_id: str) -> Job:
    """Wait until the job has finished, and return it."""
    while not (job := await scheduler.get_job_status(job_id)).status.is_terminal:  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
    assert job is not None
    return job


async def one_job(job_id: str) -> None:
    """Run one job, and print what of Prefect was imported or changed."""
    await unstopped(job_id)
    await collection_scheduler.stop()
    collection_scheduler.close()


async def unstopped(job_id: str) -> None:
    """Do the same, and exit without stopping the scheduler."""
    logging.basicConfig(level=logging.INFO, format="own format: %(message)s")
    root = list(logging.root.handlers)
    await collection_scheduler.start()
    await collection_scheduler.job_queue.add_job(Job(function=dict, job_id=job_id, pool="thread"))
    await finished(collection_scheduler, job_id)
    effects = {"imported": "prefect" in sys.modules, "logging_is_as_set_up": logging.root.handlers == root}
    print(json.dumps(effects))


async def stored(job_id: str, store: str, path: str) -> None:
    """Run a job that waits for a file, with a store."""
    scheduler = ProcessingScheduler(1, store=store)
    await scheduler.start()
    await scheduler.job_queue.add_job(
        Job(function="tests.prefect.scheduler_programs:until_there", args=(path,), job_id=job_id)
    )
    await finished(scheduler, job_id)


PROGRAMS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "one_job": one_job,
    "unstopped": unstopped,
    "stored": stored,
}

if __name__ == "__main__":
    asyncio.run(PROGRAMS[sys.argv[1]](*sys.argv[2:]))
