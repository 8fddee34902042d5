"""What a Prefect server does with state events, in memory and at will: slow, forgetful, or of another opinion."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from executor_adapter.prefect.mirror.server_api import FaultError, Recorded, RefusedError
from executor_adapter.prefect.mirror.state_events import StateEvent


class FakeServer:
    """Takes the part of ServerApi. What it is sent it queues, and records when told to."""

    def __init__(self) -> None:
        self.queue: deque[dict[str, Any]] = deque()
        self.known: dict[str, Recorded] = {}
        self.states: dict[str, list[str]] = {}
        self.is_away = False
        self.refuses: str | None = None
        """The name of a state in an event that it takes for none."""
        self.breaks_over: str | None = None
        """The name of a state over which it breaks down; "": over all."""
        self.at_once = 1
        """Events that it says to write in one transaction."""
        self.requests: list[int] = []
        """How many events each held."""
        self.most_queued = 0
        self.unlisted: deque[str] | None = None
        """Ids of events that are not in its list of events yet; None: it lists all at once."""
        self.most_unlisted = 0
        self._ids: set[str] = set()

    def send(self, bodies: Sequence[bytes]) -> None:
        if self.is_away:
            raise httpx.ConnectError("refused")
        events = [json.loads(body) for body in bodies]
        if any(event["payload"]["validated_state"]["name"] == self.refuses for event in events):
            raise RefusedError("422")
        if self.breaks_over is not None and any(self.breaks_over in event["event"] for event in events):
            raise FaultError("500")
        self.requests.append(len(events))
        self.queue.extend(events)
        if self.unlisted is not None:
            self.unlisted.extend(event["id"] for event in events)
            self.most_unlisted = max(self.most_unlisted, len(self.unlisted))
        self.most_queued = max(self.most_queued, len(self.queue))

    def record(self, most: int | None = None) -> None:
        """Work through the queue, as the server's recorder does: newest state, each state once."""
        for _ in range(min(most or len(self.queue), len(self.queue))):
            event = self.queue.popleft()
            if event["id"] in self._ids:
                continue
            self._ids.add(event["id"])
            task_run_id = event["resource"]["prefect.resource.id"].removeprefix("prefect.task-run.")
            name, at = (
                event["payload"]["validated_state"]["name"],
                datetime.fromisoformat(event["occurred"]).timestamp(),
            )
            self.states.setdefault(task_run_id, []).append(name)
            if task_run_id not in self.known or self.known[task_run_id].at < at:
                self.known[task_run_id] = Recorded(name, at)

    def lose(self) -> None:
        """Forget what is queued, as a server does that is killed."""
        self.queue.clear()

    def recorded(self, task_run_ids: Sequence[str]) -> dict[str, Recorded]:
        return {task_run_id: self.known[task_run_id] for task_run_id in task_run_ids if task_run_id in self.known}

    def list_some(self, most: int) -> None:
        """Add so many to its list of events."""
        if self.unlisted is not None:
            for _ in range(min(most, len(self.unlisted))):
                self.unlisted.popleft()

    def is_listed(self, event: StateEvent) -> bool:
        return self.unlisted is None or event.id not in self.unlisted

    def recorded_at_once(self) -> int:
        return self.at_once

    def count(self, task_run_ids: Sequence[str], state_name: str) -> int:
        return sum(known.name == state_name for known in self.recorded(task_run_ids).values())
