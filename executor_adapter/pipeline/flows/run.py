"""One flow run: submits its jobs, shows them on the terminal, then reports on the terminal and in Prefect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import Context, copy_context
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.settings import get_current_settings

from executor_adapter.config import Settings, Stage
from executor_adapter.exceptions import JobError
from executor_adapter.executor import JobExecutor
from executor_adapter.job import Job, JobStatus
from executor_adapter.monitoring import HealthMonitor
from executor_adapter.pipeline.flows import report
from executor_adapter.pipeline.processing import Balance, balance, reject_reasons
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.upkeep import status_of
from executor_adapter.prefect import JobReport, JobTask, emit_alert, job_events
from executor_adapter.terminal import SafeConsole


def run_name() -> str:
    """Return a readable name for the current flow run: the name of the flow and the start time."""
    return f"{flow_run.get_flow_name()} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


class JobsFailedError(Exception):
    """Raised when jobs of the run failed or rows were lost; the results of the other jobs are kept."""


class Run:
    """Submits the jobs of one flow run, tracks their progress and writes the report."""

    def __init__(self, settings: Settings, tables: Iterable[ConfiguredTable]) -> None:
        self.settings = settings
        self.tables: dict[str, list[ConfiguredTable]] = {}
        """The tables of each tool."""
        for table in tables:
            self.tables.setdefault(table.tool_name, []).append(table)
        self._lines = report.JobLines()
        # Each table is searched, collected and processed.
        total = 3 * sum(map(len, self.tables.values()))
        self._jobs = JobReport(flow_run.get_flow_name() or "", total=total)
        self._contexts: dict[str, Context] = {}
        """What each stage's executor is the current one in."""
        self._then: dict[UUID, Callable[[Any], object]] = {}
        self._failures: list[str] = []
        self._started = datetime.now(UTC).timestamp()
        self.again = Counter[str]()
        """The rows of each tool that were collected and had been there, perhaps with other values."""

    @contextmanager
    def executors(self, *stages: Stage) -> Iterator[None]:
        """Run the jobs of the block, each on the executor of its stage, and show them on the terminal."""
        with ExitStack() as stack:
            monitors = []
            for stage in stages:
                workers, config = getattr(self.settings, stage).max_concurrent_jobs, self.settings.for_stage(stage)
                executor = JobExecutor(workers, config=config, observers=[self._lines, self._jobs])
                stack.enter_context(executor)
                # Their events are what automations react to.
                stack.enter_context(job_events(executor=executor))
                monitors.append(stack.enter_context(HealthMonitor(executor, on_alert=[emit_alert])))
                self._contexts[stage] = copy_context()
            with self._lines.bar(flow_run.get_flow_name() or ""):
                yield
            for monitor in monitors:
                monitor.check()  # Most runs are shorter than its interval.

    def submit(
        self, task: JobTask[..., Any], label: str, subject: str, then: Callable[[Any], object], /, **arguments: Any
    ) -> None:
        """Submit a job.

        Args:
            task: what it does.
            label: how the terminal calls what it does.
            subject: which one of its tool it is.
            then: is called in `wait` with its value, or with None if it failed.
            arguments: the arguments of the task.
        """
        labelled = task.with_options(metadata={"stage": label, "subject": subject})
        context = self._contexts["processing" if label in ("process", "report") else "collection"]
        future: PrefectFuture[Any] = context.run(labelled.submit, **arguments)
        self._then[future.task_run_id] = then
        future.add_done_callback(self._lines.on_done)

    def wait(self) -> None:
        """Wait until all jobs have ended, also those that are submitted meanwhile."""
        while self._then:
            future, job = self._lines.wait()
            value = future.result() if future.state.is_completed() else None
            if job is not None:
                self._lines.print_result(job, value)
            elif value is None:
                self._failures.append(str(future.state.message))
            self._then.pop(future.task_run_id)(value)

    @contextmanager
    def reading_lake(self) -> Iterator[None]:
        """Note an error of the block, such as that of a damaged file, as a failure of the run, which goes on."""
        try:
            yield
        except JobError as error:
            if str(error) not in self._failures:
                self._failures.append(str(error))

    def finish(self, summaries: Sequence[dict[str, Any]] = ()) -> None:
        """Report the run on the terminal and in Prefect.

        Args:
            summaries: what `summarise_tables` has returned for each tool.

        Raises:
            JobsFailedError: a job failed, a table cannot be read, or rows of a tool were lost.
        """
        jobs, processes, rejects = self._lines.jobs(), "processing" in self._contexts, Counter[tuple[str, str, str]]()
        balances, states = list[Balance](), list[dict[str, Any]]()
        self._jobs.summary.total = None
        self._jobs.close(summarise=bool(jobs))
        for tool, tables in self.tables.items():
            with self.reading_lake():
                balances.append(balance(tool, tables))
                reasons = reject_reasons(tables, self._started)
                rejects.update({(tool, *reason): rows for reason, rows in reasons.items()})
        for table in (table for tables in self.tables.values() for table in tables):
            with self.reading_lake():
                states.append(status_of(table))
        create_table_artifact(states, key=f"{flow_run.get_flow_name()}-tables", description="How the tables are")
        rows = [*report.collection_sentences(jobs, balances, self.again)]
        rows += map(str, balances) if processes else ()
        rejected = report.reject_sentences(rejects)
        text = report.markdown(flow_run.get_name() or "", jobs, rows, rejected, summaries, self.settings.lake)
        create_markdown_artifact(text, key=f"{flow_run.get_flow_name()}-rows", description="The rows of the run")
        self._print(jobs, rows + rejected + [line for each in summaries for line in each["lines"]])
        self._raise_for_failures(jobs, balances)

    def _print(self, jobs: list[Job], sentences: list[str]) -> None:
        console = SafeConsole()
        for sentence in sentences:
            console.print(sentence, soft_wrap=True)
        for failure in report.failure_sentences(jobs):
            console.print(failure, style="bold red", soft_wrap=True)
        console.print(f"data: {self.settings.lake}", soft_wrap=True)
        if ui := get_current_settings().ui_url:
            console.print(f"UI:   {ui}/runs/flow-run/{flow_run.get_id()}", soft_wrap=True)

    def _raise_for_failures(self, jobs: list[Job], balances: list[Balance]) -> None:
        failed = [job for job in jobs if job.status is not JobStatus.COMPLETED]
        failures = [f"{report.name_of(job)}: {job.error_code or ''}" for job in failed] + self._failures
        if failures:
            count = f"{len(failed)} of {len(jobs)} jobs failed: " if failed else ""
            raise JobsFailedError(count + "; ".join(failures))
        if lost := [str(each) for each in balances if not each.holds]:
            raise JobsFailedError(f"rows were lost: {'; '.join(lost)}")
