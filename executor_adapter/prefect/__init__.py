"""Runs jobs as Prefect task runs, and shows every state of theirs in the Prefect UI. Only this part imports Prefect.

Names are loaded when first used: what ends the runs of a dead process needs few of them, and soon.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.blocks import JobExecutorBlock as JobExecutorBlock
    from executor_adapter.prefect.bulk.executor_mirror import PrefectMirror as PrefectMirror
    from executor_adapter.prefect.bulk.run_jobs import arun_jobs as arun_jobs
    from executor_adapter.prefect.bulk.run_jobs import run_jobs as run_jobs
    from executor_adapter.prefect.child.payload import PRELOAD as PRELOAD
    from executor_adapter.prefect.crashes.sweep import OutboxCleanUp as OutboxCleanUp
    from executor_adapter.prefect.crashes.sweep import SweptFlowRun as SweptFlowRun
    from executor_adapter.prefect.crashes.sweep import clean_outbox as clean_outbox
    from executor_adapter.prefect.crashes.sweep import sweep as sweep
    from executor_adapter.prefect.mirror.mirror import MirrorReport as MirrorReport
    from executor_adapter.prefect.mirror.server import start_embedded_server as start_embedded_server
    from executor_adapter.prefect.options.job_options import JobTaskOptions as JobTaskOptions
    from executor_adapter.prefect.options.job_options import job_options as job_options
    from executor_adapter.prefect.reporting.artifacts import JobReport as JobReport
    from executor_adapter.prefect.reporting.artifacts import job_report as job_report
    from executor_adapter.prefect.reporting.job_events import JobEvents as JobEvents
    from executor_adapter.prefect.reporting.job_events import emit_alert as emit_alert
    from executor_adapter.prefect.reporting.job_events import job_events as job_events
    from executor_adapter.prefect.runners.job_task_runner import JobTaskRunner as JobTaskRunner
    from executor_adapter.prefect.setup.bootstrap import BootstrapChange as BootstrapChange
    from executor_adapter.prefect.setup.bootstrap import BootstrapOutcome as BootstrapOutcome
    from executor_adapter.prefect.setup.bootstrap import bootstrap as bootstrap
    from executor_adapter.prefect.setup.plan import BootstrapPlan as BootstrapPlan
    from executor_adapter.prefect.setup.plan import read_plan as read_plan
    from executor_adapter.prefect.tasks import JobTask as JobTask
    from executor_adapter.prefect.tasks import job_task as job_task

__getattr__, __dir__, __all__ = lazy_attributes(__name__)
