"""One run of a flow, told: the board while it runs; at the end a summary on the terminal and artifacts in Prefect."""

from __future__ import annotations

import base64
import json
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

from executor_adapter.config.settings import Settings, Stage
from executor_adapter.executor.executor import JobExecutor
from executor_adapter.job.model import JobStatus
from executor_adapter.prefect import JobTask, job_task, wait_until_recorded
from tasks import lake, summary
from tasks.options import schemas_of
from tasks.progress_table import Board, JobLine
from tasks.report_text import failure_lines, markdown, new_rows, table_rows
from tasks.row_balance import Balance, balance

Future = PrefectFuture[Any]

RECORDED_WITHIN = 120.0
"""Seconds to wait for the server to know every task run."""

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
    """A readable name of a flow run: its flow's, and when it started."""
    return f"{flow_run.get_flow_name()} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


class JobsFailed(Exception):
    """Some jobs of the run failed; what the others did is kept."""


class Run:
    """One run of a flow: its jobs, how far it is, and what it leaves in the lake and in Prefect."""

    def __init__(self, settings: Settings, tools: Iterable[str]) -> None:
        self.settings = settings
        self.tools = tuple(tools)
        self.board = Board()
        self._submitted = self._done = 0
        self._refused: list[str] = []
        self.processes = False
        """Whether the run processes what lies in the lake: then no row may be left over."""
        self._share = (0.0, 1.0)
        self._progress: UUID | None = None
        self._shown = 0

    @contextmanager
    def executor(self, stage: Stage) -> Iterator[None]:
        """The executor of the stage's jobs, which are submitted in the block, and shown on the board."""
        max_workers = getattr(self.settings, stage).max_concurrent_jobs
        config = self.settings.for_stage(stage)
        with JobExecutor(max_workers, config=config, observers=[self.board]), self.board.live():
            yield

    def stage(self, start: float, end: float) -> None:
        """The jobs submitted from now on are this share of the run."""
        self._share, self._submitted, self._done = (start, end), 0, 0

    def submit(
        self, task: JobTask[..., Any], *, tool: str, stage: str, subject: str, arguments: dict[str, Any]
    ) -> Future:
        """Submit a job, to be shown under `tool`, `stage` and `subject`."""
        self._submitted += 1
        named = task.with_options(metadata={"stage": stage, "subject": subject}, tags=[stage, tool])
        future: Future = named.submit(**arguments)
        return future

    def as_done(self, futures: list[Future]) -> Iterator[tuple[Future, Any]]:
        """Each future once it is over, with its value; None of a job that failed, which holds up no other."""
        for future in as_completed(futures):
            completed = future.state.is_completed()
            value = future.result() if completed else None
            if self.board.settle(str(future.task_run_id), value) is None and not completed:
                self._refused.append(str(future.state.message))
            self._done += 1
            self._show_progress(self._share[0] + (self._share[1] - self._share[0]) * self._done / self._submitted)
            yield future, value

    def _show_progress(self, share: float) -> None:
        # New jobs may be found on the way: what was shown is never taken back.
        percent = round(100 * share)
        if self._progress is None:
            made = create_progress_artifact(0.0, key="progress", description="Jobs that are over")
            assert isinstance(made, UUID)  # a coroutine only where an event loop runs
            self._progress = made
        if percent > self._shown:
            self._shown = percent
            update_progress_artifact(self._progress, float(percent))

    def summarise(self) -> list[dict[str, Any]]:
        """What the processed rows tell, by a job a tool, run by the executor in force."""
        self.stage(0.9, 1.0)
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
        return [value for _, value in self.as_done(futures) if value is not None]

    def _schemas(self, tool: str) -> dict[str, str | None]:
        return schemas_of(self.settings.tools[tool])

    def finish(self, told: Iterable[dict[str, Any]] = ()) -> None:
        """Tell of the run, and wait until the server knows all of it.

        Raises:
            JobsFailed: a job failed, or rows of a tool got lost.
        """
        told = list(told)
        lines, balances = self.board.lines(), self._balances()
        rows = new_rows(lines, balances) + (list(map(str, balances)) if self.processes else [])
        sentences = [sentence for value in told for sentence in value["lines"]]
        self._leave_artifacts(lines, rows, sentences, [Path(value["png"]) for value in told if value["png"]])
        self._leave_trace()
        self._print(lines, rows + sentences)
        report = wait_until_recorded(timeout=RECORDED_WITHIN)
        if not report.complete:
            self.board.console.print(str(report), style="bold red", highlight=False)
        self._raise_for(lines, balances)

    def _balances(self) -> list[Balance]:
        return [balance(self.settings.lake, tool, self._schemas(tool)) for tool in self.tools]

    def _leave_artifacts(
        self, lines: list[JobLine], rows: list[str], sentences: list[str], pictures: list[Path]
    ) -> None:
        create_table_artifact(table_rows(lines), key="jobs", description="The jobs of the run")
        text = markdown(flow_run.get_name() or "", lines, rows, sentences, self.settings.lake)
        create_markdown_artifact(text, key="report", description="What the run did")
        for picture in pictures:
            encoded = base64.b64encode(picture.read_bytes()).decode()
            # The picture itself, not its address: the UI's browser need not reach this machine's files. In Markdown,
            # since the page of an image artifact prints the address too, here 80,000 characters across its margin.
            about = "Mean departure delay by month and origin"
            create_markdown_artifact(f"![{about}](data:image/png;base64,{encoded})", key="delays", description=about)

    def _leave_trace(self) -> None:
        trace = {"flow_run_id": str(flow_run.get_id()), "name": flow_run.get_name()}
        lake.write_file(self.settings.lake / "last_run.json", json.dumps(trace).encode())

    def _print(self, lines: list[JobLine], sentences: list[str]) -> None:
        console = self.board.console
        console.print(self.board.table(lines))
        for sentence in sentences:
            console.print(sentence, markup=False, soft_wrap=True)
        for failure in failure_lines(lines):
            console.print(failure, style="bold red", markup=False, highlight=False, soft_wrap=True)
        console.print(f"data: {self.settings.lake}", markup=False, highlight=False, soft_wrap=True)
        console.print("UI:   make ui opens this run", markup=False, highlight=False)

    def _raise_for(self, lines: list[JobLine], balances: list[Balance]) -> None:
        failed = [line for line in lines if line.status is not JobStatus.COMPLETED]
        troubles = [f"{line.stage} {line.tool} {line.subject}: {line.note}" for line in failed] + self._refused
        if troubles:
            raise JobsFailed(f"{len(troubles)} of {len(lines)} jobs failed: {'; '.join(troubles)}")
        broken = [str(each) for each in balances if not each.holds or (each.unprocessed and self.processes)]
        if broken:
            raise JobsFailed(f"rows got lost: {'; '.join(broken)}")
