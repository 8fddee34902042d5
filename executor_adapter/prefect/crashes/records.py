"""Reads flow runs from the server, with those that they call or that call them, and their unfinished task runs.

The requests use plain JSON: some run on a daemon thread, and one that is in pydantic when the interpreter exits aborts
the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, Self, TypeVar

from executor_adapter.prefect.mirror.events import FINAL_TYPES, UNFINISHED_TYPES, is_final
from executor_adapter.prefect.mirror.server import PAGE_LIMIT, ServerApi, parts

T = TypeVar("T")

Row = Mapping[str, Any]
"""An object of the server, as its API shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowRunRecord:
    """A flow run on the server."""

    id: str
    name: str
    state_type: str
    state_name: str
    run_count: int
    is_deployed: bool
    """Whether runners and workers can start it: it has a deployment or a work queue."""
    is_suspended: bool
    """Whether it is paused without a process, and another process resumes it."""
    parent_task_run_id: str | None
    """The task run that stands for it in the flow run that called it."""
    ended_at: float | None
    """In seconds since the epoch."""

    @property
    def is_final(self) -> bool:
        """Whether no state follows, unless somebody retries the flow run."""
        return self.state_type in FINAL_TYPES

    @classmethod
    def of(cls, row: Row) -> Self:
        """Read the answer of the server."""
        state = row["state"] or {}
        return cls(
            id=row["id"],
            name=row["name"],
            state_type=row["state_type"] or "",
            state_name=row["state_name"] or "",
            run_count=row["run_count"],
            is_deployed=any(row.get(field) for field in ("deployment_id", "work_queue_name", "work_pool_name")),
            is_suspended=bool((state.get("state_details") or {}).get("pause_reschedule")),
            parent_task_run_id=row["parent_task_run_id"],
            ended_at=None if row["end_time"] is None else seconds(row["end_time"]),
        )


def seconds(time: str) -> float:
    """Return the server's text for a time as seconds since the epoch."""
    return datetime.fromisoformat(time).timestamp()


class Records:
    """Reads the records of one server. Raises `httpx.HTTPError`, as `ServerApi` does."""

    def __init__(self, api: ServerApi) -> None:
        self._api = api

    def flow_runs(self, ids: Iterable[str]) -> dict[str, FlowRunRecord]:
        """Return the flow runs that exist, by id."""
        return self._flow_runs_by("id", ids)

    def find_flow_runs(self, body: Row) -> list[FlowRunRecord]:
        """Return the flow runs that match the filters of `body`: all, or as many as its limit."""
        return [run for page in self._pages("flow_runs", FlowRunRecord.of, body) for run in page]

    def in_same_process(self, ids: Iterable[str], *, callers: bool) -> dict[str, FlowRunRecord]:
        """Return the flow runs with the subflow runs in their process; with `callers`, also those that called them."""
        known = self.flow_runs(ids)
        newest = list(known.values())
        while newest:
            called = [run for run in newest if callers and not run.is_deployed]
            children = self._flow_runs_by("parent_flow_run_id", (run.id for run in newest)).values()
            here = [run for run in children if not run.is_deployed]  # A deployed one has a process of its own.
            newest = list({run.id: run for run in here + self.callers(called) if run.id not in known}.values())
            known |= {run.id: run for run in newest}
        return known

    def callers(self, runs: Iterable[FlowRunRecord]) -> list[FlowRunRecord]:
        """Return the flow runs that the runs are subflow runs of, as far as they are recorded."""
        ids = [run.parent_task_run_id for run in runs if run.parent_task_run_id is not None]
        return list(self.flow_runs(set(self._by("task_runs", "id", ids, itemgetter("flow_run_id"))) - {None}).values())

    def unfinished_task_runs(self, flow_run_ids: Iterable[str]) -> Iterator[Sequence[Row]]:
        """Yield pages of the task runs of the flow runs that have no final type."""
        for part in parts(flow_run_ids):
            wanted = {"flow_run_id": {"any_": part}, "state": {"type": {"any_": UNFINISHED_TYPES}}}
            yield from self._pages("task_runs", dict, {"task_runs": wanted, "sort": "ID_DESC"})

    def of_other_processes(self, task_runs: Iterable[Row]) -> set[str]:
        """Return the ids of those task runs that no death of their flow run's process ends.

        They are final under a name of their own (NotReady), or stand for a flow run that another process runs, or a
        task worker runs them.
        """
        children = self._flow_runs_by("parent_task_run_id", [run["id"] for run in task_runs]).values()
        living = {run.parent_task_run_id for run in children if not run.is_final}
        return {
            run["id"]
            for run in task_runs
            if run["id"] in living or is_final(run["state_type"], run["state_name"]) or self._is_deferred(run)
        }

    def _is_deferred(self, task_run: Row) -> bool:
        """Return whether a task worker runs the task run. Once it is Running, only its earlier states show that."""
        if task_run["state_type"] != "RUNNING":
            return _is_deferred(task_run["state"])
        params = {"task_run_id": task_run["id"]}
        return self._api.request("/task_run_states/", lambda found: any(map(_is_deferred, found)), "GET", params=params)

    def _flow_runs_by(self, field: str, ids: Iterable[str]) -> dict[str, FlowRunRecord]:
        return {run.id: run for run in self._by("flow_runs", field, ids, FlowRunRecord.of)}

    def _by(self, what: str, field: str, ids: Iterable[str], read: Callable[[Row], T]) -> Iterator[T]:
        bodies = ({what: {field: {"any_": part}}} for part in parts(ids))
        return (each for body in bodies for page in self._pages(what, read, body) for each in page)

    def _pages(self, what: str, read: Callable[[Row], T], body: Row) -> Iterator[list[T]]:
        offset, is_last = 0, False
        while not is_last:
            wanted = {"limit": PAGE_LIMIT, "offset": offset, **body}
            page = self._api.request(f"/{what}/filter", lambda rows: [read(row) for row in rows], json=wanted)
            offset, is_last = offset + len(page), len(page) < PAGE_LIMIT
            yield page


def _is_deferred(state: Row | None) -> bool:
    return bool(((state or {}).get("state_details") or {}).get("deferred"))
