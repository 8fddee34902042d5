"""Ends flow runs and task runs that a dead process has left unfinished.

A task run ends as Crashed by an event, as in its own process, a microsecond after its newest recorded state. So every
other end of it is newer, and wins, whenever it is recorded: one that still waits in the server's queue, one that is in
the outbox, or one of a process that was taken for dead. The end time is that of the death. Where nobody has seen the
death, it is the latest that it can be: the end of the flow run, or the moment at which this was found.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from executor_adapter.prefect.crashes.fate import Fate
from executor_adapter.prefect.crashes.records import FlowRunRecord, Records, Row, seconds
from executor_adapter.prefect.mirror.server_api import PAGE_LIMIT, ServerApi
from executor_adapter.prefect.mirror.state_events import (
    CLOCK_RESOLUTION_SECONDS,
    Change,
    StateFields,
    event_body,
    iso,
    previous_state,
    quoted,
    related_resource,
)

DIED = "The process of its flow run was killed, or exited without ending it (SIGKILL, out of memory, a lost machine)"

ROUND_EVENTS = 1_000
"""Events that are sent before the server has recorded the ones before: a tenth of what its queue holds."""

RESEND_SECONDS = 5.0
"""Seconds without progress after which events are sent again."""

SETTLE_SECONDS = 3.0
"""Seconds for which no task run may be unfinished, because states of the dead process may still wait to be recorded."""

POLL_INTERVAL = 0.25

_EVENT_IDS = uuid.UUID("0192d1c1-58a4-7c5e-9d3b-6f1c9a7e4b21")
"""Namespace of the ids of the events. Two processes that end a task run at once send the same event."""


class Closing:
    """Ends what is left of dead processes on one server, until the monotonic time `deadline`.

    Raises, from each of its methods:
        httpx.HTTPError: the server cannot be reached.
    """

    def __init__(self, api: ServerApi, deadline: float) -> None:
        self.records = Records(api)
        self.ended: Counter[str] = Counter()
        """How often an end was sent, by the id of the task run."""
        self._api = api
        self._deadline = deadline
        self._found_at = time.time()
        self._others: set[str] = set()
        """The ids of unfinished task runs that are left as they are."""

    @property
    def is_late(self) -> bool:
        """Whether its time is over."""
        return time.monotonic() >= self._deadline

    def end_flow_run(self, run: FlowRunRecord, fate: Fate, died_at: float | None) -> None:
        """Propose the final state that a flow run has not. The server refuses it where its rules forbid it."""
        message = f"{DIED}; {self._when(died_at, died_at or self._found_at)}"
        if fate is Fate.CRASH:
            self._set_state(run, "CRASHED", message)
        elif fate is Fate.CANCEL:
            self._set_state(run, "CANCELLED", f"Flow run was cancelled. {message}")

    def _set_state(self, run: FlowRunRecord, state_type: str, message: str) -> None:
        state = {"type": state_type, "name": state_type.capitalize(), "message": message}
        path: Any = "/flow_runs/{id}/set_state"
        self._api.client.request("POST", path, path_params={"id": run.id}, json={"state": state, "force": False})

    def end_task_runs(
        self, flow_runs: Mapping[str, FlowRunRecord], died_at: float | None, *, before: int | None = None
    ) -> bool:
        """End the unfinished task runs of the flow runs, and return whether the server has recorded all of it.

        `died_at` is when the process died, in seconds since the epoch; None if nobody has seen that.
        With `before`, only task runs that the flow run left at a start of a lower number are ended.
        """
        settled_at = time.monotonic()
        while not self.is_late:
            left = list(itertools.islice(self.unfinished(flow_runs, before=before), ROUND_EVENTS))
            if left:
                self._send([self._crashed(run, flow_runs[run["flow_run_id"]], died_at) for run in left])
                self._wait_for_progress(flow_runs)
                settled_at = time.monotonic()
            elif time.monotonic() - settled_at >= SETTLE_SECONDS:
                return True
            else:
                time.sleep(POLL_INTERVAL)
        return False

    def unfinished(self, flow_runs: Iterable[str], *, before: int | None = None) -> Iterator[Row]:
        """Yield the unfinished task runs of the flow runs that no other process runs; see `end_task_runs`."""
        for page in self.records.unfinished_task_runs(flow_runs):
            if before is not None:
                self._others |= {run["id"] for run in page if run["flow_run_run_count"] >= before}
            self._others |= self.records.of_other_processes(
                [run for run in page if run["id"] not in self._others and run["id"] not in self.ended]
            )
            yield from (run for run in page if run["id"] not in self._others)

    def _send(self, bodies: list[bytes]) -> None:
        for start in range(0, len(bodies), PAGE_LIMIT):
            self._api.send(bodies[start : start + PAGE_LIMIT])

    def _wait_for_progress(self, flow_runs: Iterable[str]) -> None:
        """Wait until the server has recorded what was sent, or makes no progress."""
        count, progress_at = self.records.count_unfinished(flow_runs), time.monotonic()
        while count > len(self._others) and time.monotonic() - progress_at < RESEND_SECONDS and not self.is_late:
            time.sleep(POLL_INTERVAL)
            before, count = count, self.records.count_unfinished(flow_runs)
            if count < before:
                progress_at = time.monotonic()

    def _crashed(self, run: Row, flow_run: FlowRunRecord, died_at: float | None) -> bytes:
        """Return the event by which the task run ends as Crashed."""
        self.ended[run["id"]] += 1
        # The server forgets no event, and no two states of a task run may have the same time: so each has its own.
        state = run["state"] or {"type": "PENDING", "name": "Pending", "timestamp": run["created"]}
        at = seconds(state["timestamp"]) + self.ended[run["id"]] * CLOCK_RESOLUTION_SECONDS
        ended_at = max(died_at or flow_run.ended_at or self._found_at, at)
        return _crashed(run, state, flow_run, at, ended_at, f"{DIED}; {self._when(died_at, ended_at)}")

    def _when(self, died_at: float | None, ended_at: float) -> str:
        if died_at is not None:
            return f"seen at {iso(ended_at)}"
        return f"found at {iso(self._found_at)}, ended not later than {iso(ended_at)}"


def _crashed(run: Row, state: Row, flow_run: FlowRunRecord, at: float, ended_at: float, message: str) -> bytes:
    event_id = uuid.uuid5(_EVENT_IDS, f"{run['id']} {iso(at)}")
    task_run = {
        **{field: run[field] for field in ("name", "task_key", "dynamic_key", "run_count", "flow_run_run_count")},
        "end_time": iso(ended_at),
        "total_run_time": run["total_run_time"] + (ended_at - at if state["type"] == "RUNNING" else 0.0),
    }
    change = Change(
        at,
        StateFields(str(event_id), iso(at), "CRASHED", "Crashed", quoted(message), "{}"),
        previous_state(state["type"], state["name"]),
        run["run_count"],
        quoted(run["name"]),
        json.dumps(task_run),
    )
    return event_body(run["id"], change, related_resource("flow-run", flow_run.id, flow_run.name))
