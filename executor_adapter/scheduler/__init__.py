"""Schedulers for programs without Prefect: named queues of collection and processing jobs over a JobExecutor.

    from executor_adapter.scheduler import collection_scheduler

    await collection_scheduler.start()
    job_id = await collection_scheduler.add_manual_job("collection", collect, tool_name="cequence")

Jobs may be added before `start`, and after `stop` or `close`: they wait for the next start, and nothing else starts
them. A scheduler that was stopped or closed can be started again. Where a Prefect API is configured, its jobs are task
runs there too, see `mirroring`.
"""

from __future__ import annotations

from executor_adapter.job import Job as Job
from executor_adapter.scheduler.job_queue import JobQueue as JobQueue
from executor_adapter.scheduler.schedulers import CollectionScheduler as CollectionScheduler
from executor_adapter.scheduler.schedulers import ProcessingScheduler as ProcessingScheduler
from executor_adapter.scheduler.schedulers import collection_scheduler as collection_scheduler
from executor_adapter.scheduler.schedulers import processing_scheduler as processing_scheduler
