"""Removes Prefect's log handlers from a worker. Imported only where workers are preloaded (PRELOAD).

The handlers would write each record of a job a second time, to the worker's stderr, even for jobs without Prefect.
"""

from __future__ import annotations

from executor_adapter.prefect.child.task_run_context import prepare_process

prepare_process()
