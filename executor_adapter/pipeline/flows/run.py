"""One flow run: submits its jobs, shows them on the terminal, then reports on the terminal and in Prefect."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.context import TagsContext
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from executor_adapter.config import Settings, Stage
from executor_adapter.executor import JobExecutor
from executor_adapter.job import JobStatus
from executor_adapter.monitoring import HealthMonitor, ProgressBar, ProgressCounts
from executor_adapter.pipeline.disk import writing
from executor_adapter.pipeline.flows.job_lines import JobLines, JobRow
from executor_adapter.pipeline.flows.report_text import (
    collection_sentences,
    failure_sentences,
    markdown,
    reject_sentences,
)
from executor_adapter.pipeline.processing import Balance, balance, reject_reasons
from executor_adapter.pipeline.tables import configured_tables
from executor_adapter.prefect import JobReport, JobTask, emit_alert, job_events, wait_until_recorded
from executor_adapter.terminal import SafeConsole

Future = PrefectFuture[Any]

RECORDING_TIMEOUT = 120.0
"""Seconds to wait until the server has recorded every task run."""


def run_name() -> str:
    """Return a readable name for the current flow run: the name of the flow and the start time."""
    return f"{flow_run.get_flow_name()} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


def untagged() -> TagsContext:
    """Return a context in which task runs have no tags, not even those of their flow run.

    For each task run with a tag Prefect asks the server for a slot, though no limit is set. A server on SQLite is often
    locked then, and refuses; Prefect asks again after two seconds.
    """
    return TagsContext(current_tags=set())


class JobsFailedError(Exception):
    """Raised when jobs of the run failed or rows were lost; the results of the other jobs are kept."""


class Run:
    """Submits the jobs of one flow run, tracks their progress and writes the report."""

    def __init__(self, settings: Settings, tools: Iterable[str]) -> None:
        self.settings = settings
        self.tables = {tool: configured_tables(settings, tool) for tool in tools}
        """The tables of each tool."""
        self._lines = JobLines()
        # Each table is searched, collected and processed.
        total = 3 * sum(map(len, self.tables.values()))
        self._jobs = JobReport(flow_run.get_flow_name() or "", total=total)
        self._rejected: list[str] = []
        self.processes = False
        """Whether the run processes the rows in the lake, so that no row may be left unprocessed."""

    @contextmanager
    def executor(self, stage: Stage) -> Iterator[None]:
        """Run the jobs that are submitted in the block on the stage's executor, and show them on the terminal."""
        max_workers = getattr(self.settings, stage).max_concurrent_jobs
        config = self.settings.for_stage(stage)
        with JobExecutor(max_workers, config=config, observers=[self._lines, self._jobs]) as executor:
            monitor = HealthMonitor(executor, on_alert=[emit_alert])
            # Their events are what automations react to.
            with job_events(executor=executor), monitor, self._lines.bar(stage):
                yield
            monitor.check()  # Most runs are shorter than its interval.

    def submit(self, task: JobTask[..., Any], stage: str, subject: str, /, **arguments: Any) -> Future:
        """Submit a job; `stage` and `subject` say on the terminal which one of its tool it is."""
        labelled = task.with_options(metadata={"stage": stage, "subject": subject})
        with untagged():
            future: Future = labelled.submit(**arguments)
        return future

    def as_completed(self, futures: list[Future]) -> Iterator[tuple[Future, Any]]:
        """Yield each future when it is done, with its value, or None for a job that failed."""
        for future in as_completed(futures):
            completed = future.state.is_completed()
            value = future.result() if completed else None
            if self._lines.record_result(str(future.task_run_id), value) is None and not completed:
                self._rejected.append(str(future.state.message))
            yield future, value

    def finish(self, summaries: Sequence[dict[str, Any]] = ()) -> None:
        """Report the run on the terminal and in Prefect, and wait until the server has recorded all of it.

        Args:
            summaries: what `summarise` has returned for each tool.

        Raises:
            JobsFailedError: a job failed, or rows of a tool were lost.
        """
        jobs, balances = self._lines.rows(), [balance(*of_tool) for of_tool in self.tables.items()]
        self._jobs.summary.total = None
        self._jobs.close(summarise=bool(jobs))
        rows = collection_sentences(jobs, balances) + (list(map(str, balances)) if self.processes else [])
        rejects = self._rejects() if self.processes else Counter()
        text = markdown(flow_run.get_name() or "", jobs, rows, rejects, summaries, self.settings.lake)
        create_markdown_artifact(text, key=f"{flow_run.get_flow_name()}-rows", description="The rows of the run")
        self._write_last_run()
        lines = [line for each in summaries for line in each["lines"]]
        self._print(jobs, rows + reject_sentences(rejects) + lines)
        waiting = ProgressCounts(note="it records the last states of the run")
        with ProgressBar("Prefect server", lambda: waiting, summary=False):
            report = wait_until_recorded(timeout=RECORDING_TIMEOUT)
        if not report.complete:
            SafeConsole().print(str(report), style="bold red")
        self._raise_for_failures(jobs, balances)

    def _rejects(self) -> Counter[tuple[str, str, str]]:
        rejects: Counter[tuple[str, str, str]] = Counter()
        for tool, tables in self.tables.items():
            rejects.update({(tool, *reason): rows for reason, rows in reject_reasons(tables).items()})
        return rejects

    def _write_last_run(self) -> None:
        with writing(self.settings.lake / "last_run.json") as file:
            file.write(json.dumps({"flow_run_id": str(flow_run.get_id()), "name": flow_run.get_name()}).encode())

    def _print(self, jobs: list[JobRow], sentences: list[str]) -> None:
        console = SafeConsole()
        for sentence in sentences:
            console.print(sentence, soft_wrap=True)
        for failure in failure_sentences(jobs):
            console.print(failure, style="bold red", soft_wrap=True)
        console.print(f"data: {self.settings.lake}", soft_wrap=True)
        if ui := get_current_settings().ui_url:
            console.print(f"UI:   {ui}/runs/flow-run/{flow_run.get_id()}", soft_wrap=True)

    def _raise_for_failures(self, jobs: list[JobRow], balances: list[Balance]) -> None:
        failed = [job for job in jobs if job.status is not JobStatus.COMPLETED]
        failures = [f"{job.stage} {job.tool} {job.subject}: {job.note}" for job in failed] + self._rejected
        if failures:
            raise JobsFailedError(f"{len(failures)} of {len(jobs)} jobs failed: {'; '.join(failures)}")
        incomplete = [str(each) for each in balances if not each.holds or (each.unprocessed and self.processes)]
        if incomplete:
            raise JobsFailedError(f"rows were lost: {'; '.join(incomplete)}")
