"""Imported where workers are preloaded (PRELOAD), and nowhere else: takes Prefect's own log handlers away there.

They would write each record of a job a second time, to the worker's stderr, also of jobs that know nothing of Prefect.
"""

from __future__ import annotations

from executor_adapter.prefect.child.task_run_context import prepare_process

prepare_process()
