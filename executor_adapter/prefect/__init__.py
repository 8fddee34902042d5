"""The only part that imports Prefect: jobs as task runs, and every state of theirs in the Prefect UI."""

# Not lazily, as the package above does: a module imported later would take the name of the function `job_task`.
from executor_adapter.executor.pool_factory import preload_in_workers
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
"""What a worker needs to run a job task: 0.6 s to import, so best imported once, before workers are forked."""

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
