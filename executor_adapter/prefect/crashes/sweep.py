"""Ends what dead processes have left on the server: `end_dead`, which may be repeated, whoever calls it.

The reporter does so a moment after a death. Where it could not, because the whole container or machine ended,
`executor-adapter prefect sweep` does it for all flow runs of a server, and so does the maintenance flow, which looks
after the outbox too (`clean_outbox`). Each process that runs a flow with jobs does it once for the earlier runs of that
flow that crashed, and for earlier starts of its own run. A flow run that has not ended is left alone, unless the death
of its process was seen.

A task run ends as Crashed by an event, as in its own process, a microsecond after its newest recorded state. So every
other end of it is newer, and wins, whenever it is recorded: one that still waits in the server's queue, one that is in
the outbox, or one of a process that was taken for dead. The end time is that of the death. Where nobody has seen the
death, it is the latest that it can be: the end of the flow run, or the moment at which this was found.
"""

from __future__ import annotations

import itertools
import json
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import NamedTuple

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings

from executor_adapter.prefect.crashes.fate import Death, Fate
from executor_adapter.prefect.crashes.records import FlowRunRecord, Records, Row, seconds
from executor_adapter.prefect.mirror.events import (
    CLOCK_RESOLUTION_SECONDS,
    FINAL_TYPES,
    UNFINISHED_TYPES,
    Change,
    event_body,
    iso,
    previous_state,
    quoted,
    related_flow_run,
    state_id,
)
from executor_adapter.prefect.mirror.mirror import TaskRunMirror
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.server import DAY_SECONDS, PAGE_LIMIT, REQUEST_TIMEOUT, ServerApi, server_name

logger = logging.getLogger("executor_adapter.prefect")

SWEEP_TIMEOUT = 600.0
"""Seconds for a sweep of a whole server."""

EARLIER_RUNS_TIMEOUT = 30.0
"""Seconds for the earlier runs of a flow, at its start."""

MAX_EARLIER_RUNS = 20
"""Earlier runs of a flow that are looked after at its start, the newest ones."""

MAX_EARLIER_DAYS = 7
"""Days since the end of an earlier run."""

MIN_AGE_SECONDS = 60.0
"""Seconds since the end of an earlier run: until then its own reporter, or its server's queue, may be at work."""

DIED = "The process of its flow run was killed, or exited without ending it (SIGKILL, out of memory, a lost machine)"

RESEND_SECONDS = 5.0
"""Seconds after which an end that the server has not recorded is sent again."""

SETTLE_SECONDS = 3.0
"""Seconds for which no task run may be unfinished, because states of the dead process may still wait to be recorded."""

POLL_INTERVAL = 1.0
"""Seconds between two looks. A page of task runs takes the server a tenth of a second, in which it records nothing."""


class Start(NamedTuple):
    """A start of a flow run."""

    number: int
    at: float
    """In seconds since the epoch."""

    def is_after(self, task_run: Row) -> bool:
        """Return whether an earlier start has left the task run. The time tells where it never ran: its number is 0."""
        number, state = task_run["flow_run_run_count"], task_run["state"] or {"timestamp": task_run["created"]}
        return number < self.number if number else seconds(state["timestamp"]) < self.at


class SentEnd(NamedTuple):
    """The last end that was sent for a task run."""

    number: int
    """How many ends were sent for it, this one included."""
    follows: str | None
    """The id of the recorded state that it follows."""
    at: float
    """When it was sent, in monotonic seconds."""


class Closing:
    """Ends what is left of dead processes on one server, until the monotonic time `deadline`.

    Raises, from each of its methods:
        httpx.HTTPError: the server cannot be reached.
    """

    def __init__(self, api: ServerApi, deadline: float) -> None:
        self.records = Records(api)
        self.ended: dict[str, SentEnd] = {}
        """By the id of the task run."""
        self.counts = Counter[str]()
        """The task runs that it has ended, by the id of their flow run."""
        self._api = api
        self._deadline = deadline
        self._found_at = time.time()
        self._others: set[str] = set()
        """The ids of unfinished task runs that are left as they are."""

    def end_flow_run(self, run: FlowRunRecord, fate: Fate, died_at: float | None) -> None:
        """Propose the final state that a flow run has not. The server refuses it where its rules forbid it."""
        message = f"{DIED}; {self._when(died_at, died_at or self._found_at)}"
        states = {
            Fate.CRASH: {"type": "CRASHED", "name": "Crashed", "message": message},
            Fate.CANCEL: {"type": "CANCELLED", "name": "Cancelled", "message": f"Flow run was cancelled. {message}"},
        }
        if fate in states:
            self._api.request(f"/flow_runs/{run.id}/set_state", dict, json={"state": states[fate], "force": False})

    def end_task_runs(
        self, flow_runs: Mapping[str, FlowRunRecord], died_at: float | None, *, before: Start | None = None
    ) -> bool:
        """End the unfinished task runs of the flow runs, and return whether the server has recorded all of it.

        `died_at` is when the process died, in seconds since the epoch; None if nobody has seen that.
        With `before`, only task runs that the flow run left at an earlier start are ended.
        """
        settled_at = time.monotonic()
        while time.monotonic() < self._deadline:
            left = list(itertools.islice(self.unfinished(flow_runs, before=before), PAGE_LIMIT))
            if due := [run for run in left if self._is_due(run)]:
                self._api.send([self._crashed(run, flow_runs[run["flow_run_id"]], died_at) for run in due])
            if left:
                settled_at = time.monotonic()
            elif time.monotonic() - settled_at >= SETTLE_SECONDS:
                return True
            time.sleep(POLL_INTERVAL)
        return False

    def unfinished(self, flow_runs: Iterable[str], *, before: Start | None = None) -> Iterator[Row]:
        """Yield the unfinished task runs of the flow runs that no other process runs; see `end_task_runs`."""
        for page in self.records.unfinished_task_runs(flow_runs):
            if before is not None:
                self._others |= {run["id"] for run in page if not before.is_after(run)}
            self._others |= self.records.of_other_processes(
                [run for run in page if run["id"] not in self._others and run["id"] not in self.ended]
            )
            yield from (run for run in page if run["id"] not in self._others)

    def _is_due(self, run: Row) -> bool:
        """Return whether an end must be sent: none was, a state of the dead process came after it, or it is lost."""
        sent = self.ended.get(run["id"])
        return sent is None or sent.follows != run["state_id"] or time.monotonic() - sent.at >= RESEND_SECONDS

    def _crashed(self, run: Row, flow_run: FlowRunRecord, died_at: float | None) -> bytes:
        """Return the event by which the task run ends as Crashed."""
        number = self.ended[run["id"]].number + 1 if run["id"] in self.ended else 1
        self.counts[run["flow_run_id"]] += number == 1
        self.ended[run["id"]] = SentEnd(number, run["state_id"], time.monotonic())
        # The server forgets no event, and no two states of a task run may have the same time: so each has its own.
        state = run["state"] or {"type": "PENDING", "name": "Pending", "timestamp": run["created"]}
        at = seconds(state["timestamp"]) + number * CLOCK_RESOLUTION_SECONDS
        ended_at = max(died_at or flow_run.ended_at or self._found_at, at)
        task_run = {
            **{field: run[field] for field in ("name", "task_key", "dynamic_key", "run_count", "flow_run_run_count")},
            "end_time": iso(ended_at),
            "total_run_time": run["total_run_time"] + (ended_at - at if state["type"] == "RUNNING" else 0.0),
        }
        message = quoted(f"{DIED}; {self._when(died_at, ended_at)}")
        change = Change(
            *(state_id(run["id"], at), at, "CRASHED", "Crashed", message, "{}"),
            previous_state(state["type"], state["name"]),
            run["run_count"],
            quoted(run["name"]),
            json.dumps(task_run),
        )
        return event_body(run["id"], change, related_flow_run(flow_run.id, flow_run.name))

    def _when(self, died_at: float | None, ended_at: float) -> str:
        if died_at is not None:
            return f"seen at {iso(ended_at)}"
        return f"found at {iso(self._found_at)}, ended not later than {iso(ended_at)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweptFlowRun:
    """A flow run that had not ended, or whose task runs had not."""

    flow_run_id: str
    name: str
    state: str
    task_runs: int
    """Its unfinished task runs."""
    is_recorded: bool
    """Whether the server has recorded their ends; False in a dry run."""


def end_dead(closing: Closing, death: Death, *, dry_run: bool = False) -> tuple[list[SweptFlowRun], bool]:
    """End the flow runs of a dead process that nobody continues, and their task runs.

    What has ended stays as it is, so this may be repeated, and done by several processes at once.

    Returns the flow runs of which something had not ended, and whether the server has recorded everything; False in a
    dry run.
    """
    records, has_seen = closing.records, death.died_at is not None
    # Who calls a flow run that has ended may be alive, unless the death of its process was seen.
    runs = records.in_same_process(death.run_counts, callers=has_seen)
    fates = {run.id: death.fate_of(run) for run in runs.values()}
    if death.managed is not None and fates.get(death.managed) is Fate.CONTINUES:
        return [], not dry_run
    left = {run.id: run for run in runs.values() if fates[run.id] is not Fate.CONTINUES}
    is_recorded = False
    if dry_run:
        counts = Counter(run["flow_run_id"] for run in closing.unfinished(left))
    else:
        for run in left.values():
            closing.end_flow_run(run, fates[run.id], death.died_at)
        is_recorded = closing.end_task_runs(left, death.died_at)
        counts = closing.counts
    after = records.flow_runs(left)
    swept = [
        SweptFlowRun(
            flow_run_id=run.id,
            name=run.name,
            state=after.get(run.id, run).state_name,
            task_runs=counts[run.id],
            is_recorded=is_recorded,
        )
        for run in left.values()
        if counts[run.id] or not run.is_final
    ]
    return swept, is_recorded


def sweep(*, dry_run: bool = False, timeout: float = SWEEP_TIMEOUT) -> Iterator[SweptFlowRun]:
    """End what dead processes have left on the server; with `dry_run` only find it.

    Raises:
        httpx.HTTPError: the server cannot be reached.
    """
    # Prefect's client repeats requests while the server's database is busy, and takes its time.
    with get_client(httpx_settings={"timeout": REQUEST_TIMEOUT}, sync_client=True) as client:
        closing = Closing(ServerApi(client), time.monotonic() + timeout)
        yield from _end_all(closing, find_ended_runs, dry_run=dry_run)


def _end_all(
    closing: Closing, find: Callable[[Records], Iterable[FlowRunRecord]], *, dry_run: bool = False
) -> Iterator[SweptFlowRun]:
    """End what is left of the deaths that no reporter could report, then of the flow runs that `find` returns."""
    file, deaths = OutboxFile(server_name()), dict[int, str]()
    try:
        deaths = file.deaths()
    except (OSError, sqlite3.Error) as error:
        logger.warning("cannot read the deaths of processes in %s: %s", file.path, error)
    for number, death in deaths.items():
        swept, is_recorded = end_dead(closing, Death(**json.loads(death)), dry_run=dry_run)
        if is_recorded:
            file.delete_death(number)
        yield from swept
    if found := dict.fromkeys(run.id for run in find(closing.records)):
        yield from end_dead(closing, Death(found), dry_run=dry_run)[0]


def find_ended_runs(records: Records) -> list[FlowRunRecord]:
    """Return the flow runs that have ended, and have unfinished task runs."""
    ended = {"state": {"type": {"any_": sorted(FINAL_TYPES)}}}
    body = {"flow_runs": ended, "task_runs": {"state": {"type": {"any_": UNFINISHED_TYPES}}}, "sort": "ID_DESC"}
    return records.find_flow_runs(body)  # All of it before the first change, which would move the pages.


# --- at the start of a flow ---

_swept: set[str] = set()
"""The servers for which this process has done it, by name."""


def sweep_earlier_runs(flow_run: FlowRun) -> None:
    """End what earlier processes have left of this flow, once in this process for each server and in the background.

    These are the unfinished task runs of its earlier runs that have ended, and of earlier starts of this run, which was
    scheduled again. Which machine they ran on does not matter: a new container has another name, and any other end of a
    task run wins.
    """
    if server_name() in _swept or get_current_settings().testing.test_mode:
        return
    _swept.add(server_name())
    context = copy_context()  # The thread uses the caller's settings.
    # By the server's clock, which may be ahead of this host's; no task run of this start is older than now.
    started_at = flow_run.state.timestamp.timestamp() if flow_run.state else 0.0
    start = Start(flow_run.run_count, min(started_at, time.time()))
    arguments = (_sweep_earlier_runs, str(flow_run.flow_id), str(flow_run.id), start)
    threading.Thread(target=context.run, args=arguments, name="earlier-runs", daemon=True).start()


def _sweep_earlier_runs(flow_id: str, run_id: str, start: Start) -> None:
    try:
        with ServerApi.connected() as api:
            closing = Closing(api, time.monotonic() + EARLIER_RUNS_TIMEOUT)
            if start.number > 1:
                closing.end_task_runs(closing.records.flow_runs([run_id]), None, before=start)
                if closing.ended:
                    logger.info("ended %d task runs of earlier starts of this flow run", len(closing.ended))
            for swept in _end_all(closing, lambda records: find_earlier_runs(records, flow_id, time.time())):
                logger.info("ended %d task runs of the earlier flow run %s", swept.task_runs, swept.name)
    except httpx.HTTPError as error:  # The process may be exiting, and its server with it. The next one tries again.
        logger.info("cannot look for what earlier flow runs have left: %r", error)
    except Exception:
        logger.exception("cannot end the task runs of earlier flow runs; run: executor-adapter prefect sweep")


def find_earlier_runs(records: Records, flow_id: str, now: float) -> list[FlowRunRecord]:
    """Return the newest runs of the flow that have ended, more than a minute ago, and have unfinished task runs."""
    ended = {"after_": iso(now - MAX_EARLIER_DAYS * DAY_SECONDS), "before_": iso(now - MIN_AGE_SECONDS)}
    return records.find_flow_runs(
        {
            "flows": {"id": {"any_": [flow_id]}},
            "flow_runs": {"state": {"type": {"any_": sorted(FINAL_TYPES)}}, "end_time": ended},
            "task_runs": {"state": {"type": {"any_": UNFINISHED_TYPES}}},
            "sort": "END_TIME_DESC",
            "limit": MAX_EARLIER_RUNS,
        }
    )


# --- for a maintenance flow ---


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxCleanUp:
    """What became of the states in the outbox's file."""

    sent: int
    """States that the server has recorded by now."""
    removed: int
    """States that were older than allowed, for whatever server. They are lost."""
    left: int
    """States for the server that are left: newer ones, and those of processes that are alive."""


def clean_outbox(*, max_age_days: float = 30.0) -> OutboxCleanUp:
    """Send the states in the outbox of this machine to the current server, then remove those that are too old.

    The outbox holds states that a process could not send. Old ones are mostly for a server that no longer exists.

    Raises:
        OSError, sqlite3.Error: the file cannot be used.
    """
    file = OutboxFile(server_name())
    before = file.count()
    with TaskRunMirror() as mirror:
        mirror.send_inherited()
    sent = max(0, before - file.count())
    removed = file.delete_old(time.time() - max_age_days * DAY_SECONDS)
    if removed:
        logger.warning("removed %d states from the outbox that were older than %g days", removed, max_age_days)
    return OutboxCleanUp(sent=sent, removed=removed, left=file.count())
