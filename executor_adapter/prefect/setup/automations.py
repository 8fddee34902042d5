"""The automations that watch jobs and flow runs. Their triggers fire on an open-source server.

Each does nothing but fire, which the server records as an event and the UI shows. A lost flow run also becomes Crashed,
and where the plan says so, runs that crashed, or that nothing has started, are scheduled again. All of this is about
the plan's work pool, whose name each automation has, so plans of two pools share a server.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from prefect.client.schemas.objects import StateType
from prefect.events import AutomationCore, CompoundTrigger, EventTrigger, Posture
from prefect.events.actions import ChangeFlowRunState, DoNothing

from executor_adapter.prefect.setup.plan import BootstrapPlan

RESOURCE_ID = "prefect.resource.id"
HEALTH = "executor-adapter.health."
JOBS = "executor-adapter.job."
FLOW_RUNS = "prefect.flow-run."
HEARTBEAT = f"{FLOW_RUNS}heartbeat"
CRASHED = f"{FLOW_RUNS}Crashed"
MISSED_HEARTBEATS = 4
"""Heartbeats without which a flow run is taken for lost. One may be late, and two may get lost on the way."""
UNSTARTED_RESTARTS = 2
"""The most restarts of a flow run that crashes before it starts, whatever the plan allows to those that start."""
UNSTARTED_WINDOW = timedelta(days=1)
"""Within which such crashes of one flow run are counted: the server itself counts only those of runs that started."""
TAG = "executor-adapter"

ENDS = frozenset(
    f"{FLOW_RUNS}{name}" for name in ("Completed", "Failed", "TimedOut", "Crashed", "Cancelled", "Cancelling")
)
PAUSES = frozenset(f"{FLOW_RUNS}{name}" for name in ("Paused", "Suspended", "AwaitingRetry", "Scheduled", "Pending"))
"""States in which a flow run need not send heartbeats."""
STARTS = frozenset({HEARTBEAT, f"{FLOW_RUNS}Running", f"{FLOW_RUNS}Retrying", f"{FLOW_RUNS}AwaitingConcurrencySlot"})
"""Events of a flow run whose process, or whose worker, lives."""


def automations(plan: BootstrapPlan) -> list[AutomationCore]:
    """Return all automations of a plan."""
    return [*_watching(plan), *_scheduling_again(plan)]


def _watching(plan: BootstrapPlan) -> Iterator[AutomationCore]:
    failed = {RESOURCE_ID: f"{FLOW_RUNS}*", "prefect.state-type": StateType.FAILED.value}
    for name, event, labels, description in (
        ("job near its limit", f"{HEALTH}near-limit", {}, "A job is near its max_runtime or deadline, and ends at it."),
        ("job past its limit", f"{JOBS}timed-out", {}, "A job exceeded a time limit and is not retried."),
        ("high failure rate", f"{HEALTH}high-failure-rate", {}, "Most jobs that ended within the last hour failed."),
        ("quarantined job", f"{JOBS}quarantined", {}, "A job killed too many workers, and runs again once released."),
        ("failed flow run", f"{FLOW_RUNS}*", failed, "A flow run failed, or exceeded its own timeout."),
        ("crashed flow run", CRASHED, {}, "A flow run crashed."),
        ("missed schedule", f"{FLOW_RUNS}Late", {}, "A flow run has not started in time: does a worker run?"),
    ):
        yield _automation(plan, name, description, _trigger(plan, expect={event}, match=labels))
    yield _lost(plan)


def _scheduling_again(plan: BootstrapPlan) -> Iterator[AutomationCore]:
    """Yield the automations that schedule a flow run of the plan's work pool once more."""
    if plan.crashes_rescheduled:
        # The server counts the starts of a flow run, so that one which always crashes is not run for ever.
        trigger = _crashed(plan, range(1, plan.crashes_rescheduled + 1))
        description = (
            f"A flow run of the work pool {plan.work_pool} crashed, and has not been started more than "
            f"{plan.crashes_rescheduled} times. It is scheduled again."
        )
        again = _schedule("Scheduled again, because it crashed")
        yield _automation(plan, "restart a crashed run", description, trigger, again)
        yield _unstarted(plan)
    if plan.pending_seconds is not None:
        trigger = _trigger(
            plan,
            posture=Posture.Proactive,
            after={f"{FLOW_RUNS}Pending"},
            expect=STARTS | ENDS | (PAUSES - {f"{FLOW_RUNS}Pending"}),
            within=timedelta(seconds=plan.pending_seconds),
        )
        description = (
            f"A worker of the work pool {plan.work_pool} took a flow run, which has not started within "
            f"{plan.pending_seconds} s. It is scheduled again."
        )
        again = _schedule(f"Scheduled again, because it had not started within {plan.pending_seconds} s")
        yield _automation(plan, "restart a stuck run", description, trigger, again)


def _schedule(message: str) -> ChangeFlowRunState:
    return ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message=message)


def _trigger(plan: BootstrapPlan, **fields: Any) -> EventTrigger:
    """Return a trigger that fires at each event of a flow run of the pool, unless `fields` say otherwise."""
    pool = {"prefect.resource.role": "work-pool", "prefect.resource.name": plan.work_pool}
    each: dict[str, Any] = {"posture": Posture.Reactive, "threshold": 1, "within": timedelta(0)}
    each |= {"match": {RESOURCE_ID: f"{FLOW_RUNS}*"}, "match_related": pool, "for_each": {RESOURCE_ID}}
    return EventTrigger(**each | fields)


def _crashed(plan: BootstrapPlan, starts: Iterable[int], **fields: Any) -> EventTrigger:
    """Return the trigger on crashes of flow runs of the pool that were started so often."""
    match = {RESOURCE_ID: f"{FLOW_RUNS}*", "prefect.run-count": [str(count) for count in starts]}
    return _trigger(plan, expect={CRASHED}, match=match, **fields)


def _unstarted(plan: BootstrapPlan) -> AutomationCore:
    """Return the automation on flow runs that crash before they start, of which the server counts no starts."""
    restarts = min(plan.crashes_rescheduled, UNSTARTED_RESTARTS)
    # A trigger fires once for a flow run within its window: the first one at the first crash, the next at the second.
    triggers = [_crashed(plan, [0], threshold=each, within=UNSTARTED_WINDOW) for each in range(1, restarts + 1)]
    description = (
        f"A flow run of the work pool {plan.work_pool} crashed before it started. It is scheduled again, "
        f"{restarts} times within a day at most."
    )
    again = _schedule("Scheduled again, because it crashed before it started")
    trigger = CompoundTrigger(require="any", triggers=triggers, within=timedelta(0))
    return _automation(plan, "restart an unstarted run", description, trigger, again)


def _lost(plan: BootstrapPlan) -> AutomationCore:
    """Return the automation on flow runs whose heartbeats have stopped although they have not ended.

    The server may learn late that a flow run has ended, and this then fires, but crashes nothing.
    """
    seconds = MISSED_HEARTBEATS * plan.heartbeat_seconds
    trigger = _trigger(
        plan,
        posture=Posture.Proactive,
        after={HEARTBEAT},
        expect={HEARTBEAT, *ENDS, *PAUSES},
        within=timedelta(seconds=seconds),
    )
    # The actions belong to people once they are created, so the message must hold for other plans too.
    crash = ChangeFlowRunState(state=StateType.CRASHED, message="Its heartbeats have stopped: its process is lost")
    description = (
        f"A flow run of the work pool {plan.work_pool} has sent no heartbeat for {seconds} s, four times the longest "
        "interval of the pool, and has not ended. It becomes Crashed."
    )
    return _automation(plan, "flow run without heartbeat", description, trigger, crash)


def _automation(
    plan: BootstrapPlan,
    name: str,
    description: str,
    trigger: EventTrigger | CompoundTrigger,
    action: ChangeFlowRunState | None = None,
) -> AutomationCore:
    automation = AutomationCore(
        name=f"executor-adapter {plan.work_pool}: {name}",  # Each pool's own: plans of two teams share a server.
        description=description,
        tags=[TAG],
        trigger=trigger,
        actions=[action or DoNothing()],
    )
    return with_all_fields(automation)


def with_all_fields(automation: AutomationCore, **changed: Any) -> AutomationCore:
    """Return the automation, with the `changed` fields, as Prefect's client can send it.

    The client leaves out what was not set, even the type of an action, and the server takes no owner from a client.
    """
    fields = {name: getattr(automation, name) for name in AutomationCore.model_fields} | changed
    return AutomationCore.model_validate(AutomationCore(**fields).model_dump(exclude={"owner_resource"}))


def facts(automation: AutomationCore) -> dict[str, Any]:
    """Return what a plan declares of an automation, in the form in which the server returns it too."""
    trigger = _plain(automation.trigger.model_dump(mode="json", exclude_none=True))
    return {"description": automation.description, **trigger}


def _plain(value: Any) -> Any:
    """Return a dumped trigger without the ids that the server gives, and its sets in order."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if key != "id"}
    if isinstance(value, list):
        return sorted(value) if all(isinstance(each, str) for each in value) else [_plain(each) for each in value]
    return value
