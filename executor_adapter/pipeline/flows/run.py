"""One flow run: submits its jobs, shows them in a table while they run, then reports on the terminal and in Prefect."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
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
from prefect.context import TagsContext
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from executor_adapter.config import Settings, Stage
from executor_adapter.executor import JobExecutor
from executor_adapter.job import JobStatus
from executor_adapter.monitoring import HealthMonitor, ProgressBar, ProgressCounts
from executor_adapter.pipeline.disk import writing
from executor_adapter.pipeline.flows.progress_table import JobRow, ProgressTable
from executor_adapter.pipeline.flows.report_text import (
    Report,
    artifact_rows,
    collection_sentences,
    failure_sentences,
    markdown,
    reject_sentences,
)
from executor_adapter.pipeline.processing import Balance, balance, reject_reasons
from executor_adapter.pipeline.tables import configured_tables
from executor_adapter.prefect import JobTask, emit_alert, job_events, wait_until_recorded

Future = PrefectFuture[Any]

RECORDING_TIMEOUT = 120.0
"""Seconds to wait until the server has recorded every task run."""
PROGRESS_INTERVAL = 1.0
"""Seconds between two updates of the progress."""


def run_name() -> str:
    """Return a readable name for the current flow run: the name of the flow and the start time."""
    return f"{flow_run.get_flow_name()} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


def key(artifact: str) -> str:
    """Return the key of an artifact of the current flow, so that those of each flow have a history of their own."""
    return f"{flow_run.get_flow_name()}-{artifact}"


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
        self.progress_table = ProgressTable()
        self._submitted = self._done = 0
        self._rejected: list[str] = []
        self.processes = False
        """Whether the run processes the rows in the lake, so that no row may be left unprocessed."""
        self._share = (0.0, 1.0)
        self._artifact_id: UUID | None = None
        self._percent = 0
        self._shown_at = -PROGRESS_INTERVAL

    @contextmanager
    def executor(self, stage: Stage) -> Iterator[None]:
        """Run the jobs that are submitted in the block on the stage's executor, and show them in the progress table."""
        max_workers = getattr(self.settings, stage).max_concurrent_jobs
        config = self.settings.for_stage(stage)
        with JobExecutor(max_workers, config=config, observers=[self.progress_table]) as executor:
            monitor = HealthMonitor(executor, on_alert=[emit_alert])
            # Their events are what automations react to.
            with job_events(executor=executor), monitor, self.progress_table.live(stage):
                yield
            monitor.check()  # Most runs are shorter than its interval.

    def begin_stage(self, start: float, end: float) -> None:
        """Let the jobs submitted from now on move the progress from `start` to `end`, as shares of the whole run."""
        self._share, self._submitted, self._done = (start, end), 0, 0

    def submit(self, task: JobTask[..., Any], stage: str, subject: str, /, **arguments: Any) -> Future:
        """Submit a job; `stage` and `subject` say in the progress table which one of its tool it is."""
        self._submitted += 1
        labelled = task.with_options(metadata={"stage": stage, "subject": subject})
        with untagged():
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
        # Each update is a request, for which the jobs that come next wait.
        is_due = time.monotonic() - self._shown_at >= PROGRESS_INTERVAL or percent == 100
        if percent > self._percent and is_due:
            self._percent, self._shown_at = percent, time.monotonic()
            update_progress_artifact(self._artifact_id, float(percent))

    def finish(self, summaries: Sequence[dict[str, Any]] = ()) -> None:
        """Report the run on the terminal and in Prefect, and wait until the server has recorded all of it.

        Args:
            summaries: what `summarise` has returned for each tool.

        Raises:
            JobsFailedError: a job failed, or rows of a tool were lost.
        """
        self._show_progress(1.0)
        jobs, balances = self.progress_table.rows(), [balance(*of_tool) for of_tool in self.tables.items()]
        rows = collection_sentences(jobs, balances) + (list(map(str, balances)) if self.processes else [])
        sentences = [sentence for summary in summaries for sentence in summary["lines"]]
        plots = [(summary["title"], Path(summary["png"])) for summary in summaries if summary["png"]]
        rejects = self._rejects() if self.processes else Counter()
        self._create_artifacts(jobs, rows, sentences, plots, rejects)
        self._write_last_run()
        self._print(jobs, rows + reject_sentences(rejects) + sentences)
        waiting = ProgressCounts(note="it records the last states of the run")
        with ProgressBar("Prefect server", lambda: waiting, summary=False):
            report = wait_until_recorded(timeout=RECORDING_TIMEOUT)
        if not report.complete:
            self.progress_table.console.print(str(report), style="bold red")
        self._raise_for_failures(jobs, balances)

    def _create_artifacts(
        self,
        jobs: list[JobRow],
        rows: list[str],
        sentences: list[str],
        plots: list[tuple[str, Path]],
        rejects: Counter[tuple[str, str, str]],
    ) -> None:
        links = {"all jobs": create_table_artifact(artifact_rows(jobs), key=key("jobs"), description="All jobs")}
        pictures = []
        for title, file in plots:
            # An image is embedded, because the UI's browser may not reach the files of this machine. A Markdown
            # artifact is used, because the page of an image artifact also prints the 80,000 characters of its address.
            picture = f"![{title}](data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()})"
            artifact = key(f"plot-{file.parent.name}".lower().replace("_", "-").replace(".", "-"))
            links[title] = create_markdown_artifact(picture, key=artifact, description=title)
            pictures.append(picture)
        report = Report(
            title=flow_run.get_name() or "",
            rows=rows,
            sentences=sentences,
            rejects=rejects,
            plots=pictures,
            # Without a host: the UI that shows the report has the others too, wherever it is.
            links={text: f"/artifacts/artifact/{artifact_id}" for text, artifact_id in links.items()},
            lake=self.settings.lake,
        )
        create_markdown_artifact(markdown(report, jobs), key=key("report"), description="The report of the run")

    def _rejects(self) -> Counter[tuple[str, str, str]]:
        rejects: Counter[tuple[str, str, str]] = Counter()
        for tool, tables in self.tables.items():
            rejects.update({(tool, *reason): rows for reason, rows in reject_reasons(tables).items()})
        return rejects

    def _write_last_run(self) -> None:
        with writing(self.settings.lake / "last_run.json") as file:
            file.write(json.dumps({"flow_run_id": str(flow_run.get_id()), "name": flow_run.get_name()}).encode())

    def _print(self, jobs: list[JobRow], sentences: list[str]) -> None:
        console = self.progress_table.console
        console.print(self.progress_table.render(jobs))
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
