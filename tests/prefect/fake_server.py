"""A Prefect server in memory, as far as state events go: as slow, forgetful or faulty as a test wants it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from executor_adapter.prefect.mirror.events import StateEvent
from executor_adapter.prefect.mirror.server import Recorded, RejectedError


class FakeServer:
    """Replaces ServerApi: queues the events it gets, and records them on request."""

    def __init__(self) -> None:
        self.queue: deque[dict[str, Any]] = deque()
        self.known: dict[str, Recorded] = {}
        self.states: dict[str, list[str]] = {}
        self.is_unreachable = False
        self.rejects: str | None = None
        """The name of a state that it does not take; "" for all."""
        self.requests: list[int] = []
        """The number of events in each request."""
        self.looked_up: list[int] = []
        """The number of task runs, or of flow runs, that each question is about."""
        self.most_queued = 0
        self.unlisted: deque[str] | None = None
        """Ids of events that its list does not contain yet; None if it lists each event at once."""
        self.most_unlisted = 0
        self.deleted: set[str] = set()
        """Ids of flow runs that it does not have."""
        self.poisons: set[str] = set()
        """Ids of events that it cannot record: it loses all that it would have recorded in one transaction with one."""
        self.transaction = 500
        """Events that it records at once, at most."""
        self._ids: set[str] = set()
        self._moments: set[tuple[str, str]] = set()
        """The task runs and times of the recorded states."""

    def send(self, bodies: Sequence[bytes]) -> None:
        """Queue events, or fail as the attributes demand."""
        if self.is_unreachable:
            raise httpx.ConnectError("refused")
        events = [json.loads(body) for body in bodies]
        if self.rejects is not None and any(self.rejects in event["event"] for event in events):
            raise RejectedError("HTTP 422")
        self.requests.append(len(events))
        self.queue.extend(events)
        if self.unlisted is not None:
            self.unlisted.extend(event["id"] for event in events)
            self.most_unlisted = max(self.most_unlisted, len(self.unlisted))
        self.most_queued = max(self.most_queued, len(self.queue))

    def record(self, limit: int | None = None) -> None:
        """Record queued events as the server does: each state once, and the newest one as the task run's."""
        events = [self.queue.popleft() for _ in range(min(limit or len(self.queue), len(self.queue)))]
        for start in range(0, len(events), self.transaction):
            together = events[start : start + self.transaction]
            if self.poisons.isdisjoint(event["id"] for event in together):
                for event in together:
                    if event["id"] not in self._ids:
                        self._ids.add(event["id"])
                        self._record(event)

    def _record(self, event: dict[str, Any]) -> None:
        task_run_id = event["resource"]["prefect.resource.id"].removeprefix("prefect.task-run.")
        moment = (task_run_id, event["occurred"])
        assert moment not in self._moments, "a server fails for all events that it records together with this one"
        self._moments.add(moment)
        name = event["payload"]["validated_state"]["name"]
        at = datetime.fromisoformat(event["occurred"]).timestamp()
        self.states.setdefault(task_run_id, []).append(name)
        if task_run_id not in self.known or self.known[task_run_id].at < at:
            self.known[task_run_id] = Recorded(name, at)

    def lose(self) -> None:
        """Forget the queued events, as a killed server does."""
        self.queue.clear()

    def recorded(self, task_run_ids: Sequence[str]) -> dict[str, Recorded]:
        """Return the states of the known task runs."""
        self.looked_up.append(len(task_run_ids))
        return {task_run_id: self.known[task_run_id] for task_run_id in task_run_ids if task_run_id in self.known}

    def list_some(self, limit: int) -> None:
        """Add events to its list, at most `limit`."""
        if self.unlisted is not None:
            for _ in range(min(limit, len(self.unlisted))):
                self.unlisted.popleft()

    def is_listed(self, event: StateEvent) -> bool:
        """Return whether the server's list contains the event."""
        return self.unlisted is None or event.id not in self.unlisted

    def deleted_flow_runs(self, ids: Sequence[str]) -> set[str]:
        """Return those of the flow runs that it does not have."""
        self.looked_up.append(len(ids))
        return self.deleted.intersection(ids)

    def count(self, task_run_ids: Sequence[str], state_name: str) -> int:
        """Return how many of the task runs are in the state of that name."""
        return sum(known.name == state_name for known in self.recorded(task_run_ids).values())
