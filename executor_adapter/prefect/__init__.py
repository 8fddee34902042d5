"""Runs jobs as Prefect task runs, and shows every state of theirs in the Prefect UI. Only this part imports Prefect."""

from prefect.settings import get_current_settings

# Not imported lazily, as in the package above: a later import of the module `job_task` would replace the function.
from executor_adapter.blocks import JobExecutorBlock
from executor_adapter.executor import preload_in_workers, read_threads_from
from executor_adapter.prefect.bulk.run_jobs import arun_jobs, run_jobs
from executor_adapter.prefect.crashes.sweep import OutboxCleanUp, SweptFlowRun, clean_outbox, sweep
from executor_adapter.prefect.job_task import JobTask, job_task
from executor_adapter.prefect.mirror.mirror import MirrorReport, PrefectMirror
from executor_adapter.prefect.mirror.runs import ReconcileReport, wait_until_recorded
from executor_adapter.prefect.mirror.server import start_embedded_server
from executor_adapter.prefect.options.job_options import JobTaskOptions
from executor_adapter.prefect.options.plain_task import job_options
from executor_adapter.prefect.reporting.artifacts import JobReport, job_report
from executor_adapter.prefect.reporting.job_events import JobEvents, emit_alert, job_events
from executor_adapter.prefect.runners.job_task_runner import JobTaskRunner
from executor_adapter.prefect.setup.bootstrap import BootstrapChange, BootstrapOutcome, bootstrap
from executor_adapter.prefect.setup.plan import BootstrapPlan, read_plan

PRELOAD = ("prefect.main", "executor_adapter.prefect", "executor_adapter.prefect.child.preload")
"""The modules that a worker needs for job tasks. They take 0.6 s to import, so they are imported before the fork."""

__all__ = [
    "PRELOAD",
    "BootstrapChange",
    "BootstrapOutcome",
    "BootstrapPlan",
    "JobEvents",
    "JobExecutorBlock",
    "JobReport",
    "JobTask",
    "JobTaskOptions",
    "JobTaskRunner",
    "MirrorReport",
    "OutboxCleanUp",
    "PrefectMirror",
    "ReconcileReport",
    "SweptFlowRun",
    "arun_jobs",
    "bootstrap",
    "clean_outbox",
    "emit_alert",
    "job_events",
    "job_options",
    "job_report",
    "job_task",
    "read_plan",
    "run_jobs",
    "start_embedded_server",
    "sweep",
    "wait_until_recorded",
]

preload_in_workers(*PRELOAD)
read_threads_from(lambda: get_current_settings().tasks.runner.thread_pool_max_workers)
