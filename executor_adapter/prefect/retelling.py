"""Tells a server again how task runs of an engine's ended, many at once and at its pace."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.results import ResultRecord  # type: ignore[attr-defined]  # imported there, and meant to be

from executor_adapter.job import uuid7
from executor_adapter.prefect.courier import Courier
from executor_adapter.prefect.events import FinalState
from executor_adapter.prefect.server_api import ServerApi
from executor_adapter.prefect.state_events import MESSAGE_LENGTH, StateEvent, resource

TURN_SECONDS = 0.1
AWAY_SECONDS = 1.0

_NOT_TOLD = {
    *{"id", "created", "updated", "flow_run_id", "state_id", "state_type", "state_name", "state"},
    *{"estimated_start_time_delta", "estimated_run_time"},  # the server's own
}


def tell_again(finals: Iterable[FinalState], api: ServerApi, deadline: float) -> int:
    """Bring final states to the server, until it has them or the time (monotonic) is `deadline`; how many were sent."""
    waiting = deque(map(event_of, finals))
    told = len(waiting)
    lock = threading.Lock()
    courier = Courier(lambda most: [waiting.popleft() for _ in range(min(most, len(waiting)))], lock)
    while (waiting or not courier.is_idle) and time.monotonic() < deadline:
        try:
            with lock:
                courier.turn(api)
            time.sleep(TURN_SECONDS)
        except httpx.HTTPError:
            time.sleep(AWAY_SECONDS)
    return told - len(waiting) + courier.told_again


def event_of(final: FinalState) -> StateEvent:
    """The event that tells of a final state as its engine's did, under a new id: the server knows the old one."""
    state, run = final.state, final.task_run
    at = state.timestamp or datetime.now(UTC)
    kind, name, message = state.type.value, state.name or "", (state.message or "")[:MESSAGE_LENGTH]
    body = {
        "id": uuid7(),
        "occurred": at.isoformat(),
        "event": f"prefect.task-run.{name}",
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{run.id}",
            "prefect.resource.name": run.name,
            "prefect.run-count": str(run.run_count),
            "prefect.state-message": message,
            "prefect.state-name": name,
            "prefect.state-timestamp": at.isoformat(),
            "prefect.state-type": kind,
            "prefect.orchestration": "client",
        },
        "related": _related(final),
        "payload": {
            "intended": {"from": None, "to": kind},
            "initial_state": None,
            "validated_state": {
                "type": kind,
                "name": name,
                "message": message,
                "state_details": state.state_details.model_dump(
                    mode="json", exclude_none=True, exclude_unset=True, exclude={"flow_run_id", "task_run_id"}
                ),
                "data": _record_of(final),
            },
            "task_run": run.model_dump(mode="json", exclude_none=True, exclude=_NOT_TOLD),
        },
    }
    return StateEvent(str(run.id), name, at.timestamp(), True, json.dumps(body).encode())


def _related(final: FinalState) -> list[dict[str, str]]:
    tags = [
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
        for tag in sorted(final.task_run.tags)
    ]
    flow_run = final.flow_run
    return tags if flow_run is None else [json.loads(resource("flow-run", flow_run.id, flow_run.name)), *tags]


def _record_of(final: FinalState) -> Any:
    """Where the result is, if it is persisted."""
    data: Any = final.state.data
    return data.metadata.model_dump(mode="json") if final.persist_result and isinstance(data, ResultRecord) else None
