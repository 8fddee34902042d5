"""Reports a flow run: a progress table while it runs, then a summary on the terminal and artifacts in Prefect."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run

from executor_adapter import JobExecutor, JobStatus
from executor_adapter.config import Settings, Stage
from executor_adapter.monitoring import HealthMonitor, ProgressBar, ProgressCounts
from executor_adapter.prefect import JobTask, emit_alert, job_events, job_task, wait_until_recorded
from tasks import lake, summary
from tasks.options import schemas_of
from tasks.progress_table import JobRow, ProgressTable
from tasks.report_text import Report, artifact_rows, collection_sentences, failure_sentences, markdown
from tasks.row_balance import Balance, balance, reject_reasons

Future = PrefectFuture[Any]

RECORDING_TIMEOUT = 120.0
"""Seconds to wait until the server has recorded every task run."""

summarise = job_task(
    pool="process",
    job_type="report",
    name="summarise",
    task_run_name="summarise {tool_name}",
    tool_name="{tool_name}",
    cache_policy=NO_CACHE,
    persist_result=False,
)(summary.summarise)


def run_name() -> str:
    """Return a readable name for the current flow run: the name of the flow and the start time."""
    return f"{flow_run.get_flow_name()} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


def key(artifact: str) -> str:
    """Return the key of an artifact of the current flow, so that those of each flow have a history of their own."""
    return f"{flow_run.get_flow_name()}-{artifact}"


class JobsFailedError(Exception):
    """Raised when jobs of the run failed or rows were lost; the results of the other jobs are kept."""


class Run:
    """Submits the jobs of one flow run, tracks their progress and writes the report."""

    def __init__(self, settings: Settings, tools: Iterable[str]) -> None:
        self.settings = settings
        self.tools = tuple(tools)
        self.progress_table = ProgressTable()
        self._submitted = self._done = 0
        self._rejected: list[str] = []
        self.processes = False
        """Whether the run processes the rows in the lake, so that no row may be left unprocessed."""
        self._share = (0.0, 1.0)
        self._artifact_id: UUID | None = None
        self._percent = 0

    @contextmanager
    def executor(self, stage: Stage) -> Iterator[None]:
        """Run the jobs that are submitted in the block on the stage's executor, and show them in the progress table."""
        max_workers = getattr(self.settings, stage).max_concurrent_jobs
        config = self.settings.for_stage(stage)
        with JobExecutor(max_workers, config=config, observers=[self.progress_table]) as executor:
            monitor = HealthMonitor(executor, on_alert=[emit_alert])
            # Their events are what automations react to.
            with job_events(executor=executor), monitor, self.progress_table.live():
                yield
            monitor.check()  # Most runs are shorter than its interval.

    def begin_stage(self, start: float, end: float) -> None:
        """Let the jobs submitted from now on move the progress from `start` to `end`, as shares of the whole run."""
        self._share, self._submitted, self._done = (start, end), 0, 0

    def submit(
        self, task: JobTask[..., Any], *, tool: str, stage: str, subject: str, arguments: dict[str, Any]
    ) -> Future:
        """Submit a job; `tool`, `stage` and `subject` identify it in the progress table."""
        self._submitted += 1
        labelled = task.with_options(metadata={"stage": stage, "subject": subject}, tags=[stage, tool])
        future: Future = labelled.submit(**arguments)
        return future

    def as_completed(self, futures: list[Future]) -> Iterator[tuple[Future, Any]]:
        """Yield each future when it is done, with its value, or None for a job that failed."""
        for future in as_completed(futures):
            completed = future.state.is_completed()
            value = future.result() if completed else None
            if self.progress_table.record_result(str(future.task_run_id), value) is None and not completed:
                self._rejected.append(str(future.state.message))
            self._done += 1
            self._show_progress(self._share[0] + (self._share[1] - self._share[0]) * self._done / self._submitted)
            yield future, value

    def _show_progress(self, share: float) -> None:
        # Jobs submitted later can lower the share; the progress that is shown never goes down.
        percent = round(100 * share)
        if self._artifact_id is None:
            created = create_progress_artifact(0.0, key=key("progress"), description="Finished jobs")
            assert isinstance(created, UUID)  # Prefect returns a coroutine only inside a running event loop.
            self._artifact_id = created
        if percent > self._percent:
            self._percent = percent
            update_progress_artifact(self._artifact_id, float(percent))

    def summarise(self) -> list[dict[str, Any]]:
        """Return a summary of the processed rows of each tool, made by one job per tool on the current executor."""
        self.begin_stage(0.9, 1.0)
        root = self.settings.lake
        futures = [
            self.submit(
                summarise,
                tool=tool,
                stage="report",
                subject="summary",
                arguments={"root": root, "tool_name": tool, "schemas": self._schemas(tool)},
            )
            for tool in self.tools
        ]
        return [value for _, value in self.as_completed(futures) if value is not None]

    def _schemas(self, tool: str) -> dict[str, str | None]:
        return schemas_of(self.settings.tools[tool])

    def finish(self, summaries: Iterable[dict[str, Any]] = ()) -> None:
        """Report the run on the terminal and in Prefect, and wait until the server has recorded all of it.

        Raises:
            JobsFailedError: a job failed, or rows of a tool were lost.
        """
        summaries = list(summaries)
        jobs, balances = self.progress_table.rows(), self._balances()
        rows = collection_sentences(jobs, balances) + (list(map(str, balances)) if self.processes else [])
        sentences = [sentence for summary in summaries for sentence in summary["lines"]]
        plots = [Path(summary["png"]) for summary in summaries if summary["png"]]
        self._create_artifacts(jobs, rows, sentences, plots)
        self._write_last_run()
        self._print(jobs, rows + sentences)
        waiting = ProgressCounts(note="it records the last states of the run")
        with ProgressBar("Prefect server", lambda: waiting, summary=False):
            report = wait_until_recorded(timeout=RECORDING_TIMEOUT)
        if not report.complete:
            self.progress_table.console.print(str(report), style="bold red", highlight=False)
        self._raise_for_failures(jobs, balances)

    def _balances(self) -> list[Balance]:
        return [balance(self.settings.lake, tool, self._schemas(tool)) for tool in self.tools]

    def _create_artifacts(self, jobs: list[JobRow], rows: list[str], sentences: list[str], plots: list[Path]) -> None:
        links = {"all jobs": create_table_artifact(artifact_rows(jobs), key=key("jobs"), description="All jobs")}
        about = "Mean departure delay by month and origin"
        # An image is embedded, because the UI's browser may not reach the files of this machine. A Markdown artifact is
        # used, because the page of an image artifact also prints the 80,000 characters of its address.
        encoded = [base64.b64encode(plot.read_bytes()).decode() for plot in plots]
        pictures = [f"![{about}](data:image/png;base64,{each})" for each in encoded]
        for picture in pictures:
            links["the plot"] = create_markdown_artifact(picture, key=key("delays"), description=about)
        report = Report(
            title=flow_run.get_name() or "",
            rows=rows,
            sentences=sentences,
            rejects=self._rejects() if self.processes else Counter(),
            plots=pictures,
            # Without a host: the UI that shows the report has the others too, wherever it is.
            links={text: f"/artifacts/artifact/{artifact_id}" for text, artifact_id in links.items()},
            lake=self.settings.lake,
        )
        create_markdown_artifact(markdown(report, jobs), key=key("report"), description="The report of the run")

    def _rejects(self) -> Counter[tuple[str, str, str]]:
        rejects: Counter[tuple[str, str, str]] = Counter()
        for tool in self.tools:
            reasons = reject_reasons(self.settings.lake, tool, self._schemas(tool))
            rejects.update({(tool, *reason): rows for reason, rows in reasons.items()})
        return rejects

    def _write_last_run(self) -> None:
        last_run = {"flow_run_id": str(flow_run.get_id()), "name": flow_run.get_name()}
        lake.write_file(self.settings.lake / "last_run.json", json.dumps(last_run).encode())

    def _print(self, jobs: list[JobRow], sentences: list[str]) -> None:
        console = self.progress_table.console
        console.print(self.progress_table.render(jobs))
        for sentence in sentences:
            console.print(sentence, markup=False, soft_wrap=True)
        for failure in failure_sentences(jobs):
            console.print(failure, style="bold red", markup=False, highlight=False, soft_wrap=True)
        console.print(f"data: {self.settings.lake}", markup=False, highlight=False, soft_wrap=True)
        console.print("UI:   make ui opens this run", markup=False, highlight=False)

    def _raise_for_failures(self, jobs: list[JobRow], balances: list[Balance]) -> None:
        failed = [job for job in jobs if job.status is not JobStatus.COMPLETED]
        failures = [f"{job.stage} {job.tool} {job.subject}: {job.note}" for job in failed] + self._rejected
        if failures:
            raise JobsFailedError(f"{len(failures)} of {len(jobs)} jobs failed: {'; '.join(failures)}")
        incomplete = [str(each) for each in balances if not each.holds or (each.unprocessed and self.processes)]
        if incomplete:
            raise JobsFailedError(f"rows were lost: {'; '.join(incomplete)}")
