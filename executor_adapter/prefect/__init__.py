"""Runs jobs as Prefect task runs, and shows every state of theirs in the Prefect UI. Only this part imports Prefect."""

# Not imported lazily, as in the package above: a later import of the module `job_task` would replace the function.
from executor_adapter.executor import preload_in_workers
from executor_adapter.prefect.blocks import JobExecutorBlock
from executor_adapter.prefect.bulk.run_jobs import arun_jobs, run_jobs
from executor_adapter.prefect.job_task import JobTask, job_task
from executor_adapter.prefect.mirror.mirror import PrefectMirror
from executor_adapter.prefect.mirror.reconcile import ReconcileReport, wait_until_recorded
from executor_adapter.prefect.mirror.report import MirrorReport
from executor_adapter.prefect.options.plain_task import job_options
from executor_adapter.prefect.reporting.alerts import emit_alert
from executor_adapter.prefect.reporting.artifacts import JobReport, job_report
from executor_adapter.prefect.reporting.job_events import JobEvents, job_events
from executor_adapter.prefect.runners.job_task_runner import JobTaskRunner

PRELOAD = ("prefect.main", "executor_adapter.prefect", "executor_adapter.prefect.child.preload")
"""The modules that a worker needs for job tasks. They take 0.6 s to import, so they are imported before the fork."""

__all__ = [
    "PRELOAD",
    "JobEvents",
    "JobExecutorBlock",
    "JobReport",
    "JobTask",
    "JobTaskRunner",
    "MirrorReport",
    "PrefectMirror",
    "ReconcileReport",
    "arun_jobs",
    "emit_alert",
    "job_events",
    "job_options",
    "job_report",
    "job_task",
    "run_jobs",
    "wait_until_recorded",
]

preload_in_workers(*PRELOAD)
