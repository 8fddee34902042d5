"""The unsent state changes of task runs: what events are made of, in which order they are sent, and what is skipped.

Each task run has a history of changes, with all that Prefect's engines send (`engine_change`: that of
`prefect.utilities.engine.emit_task_run_state_change_event`, with the state's own id and time). A job that the
supervisor drives has one of steps, which are cheap to keep, and become changes when they are sent (`JobHistory`).

The task run that has waited longest comes first. While many changes are waiting, a server gets the final state of a
finished job alone, which is much less work for it than three states one by one.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID, uuid5

from prefect.client.schemas.objects import State, TaskRun, TaskRunPolicy
from prefect.results import ResultRecord, should_persist_result  # type: ignore[attr-defined]  # meant to be used
from pydantic import BaseModel

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.job import TERMINAL, Job, JobStatus, RetryPolicy, Transition, function_reference
from executor_adapter.prefect.mirror.events import (
    CLOCK_RESOLUTION_SECONDS,
    MAX_MESSAGE_LENGTH,
    NO_PREVIOUS_STATE,
    Change,
    FlowRunFacts,
    StateEvent,
    event_body,
    iso,
    previous_state,
    quoted,
    state_id,
)
from executor_adapter.prefect.mirror.states import (
    StateKind,
    awaiting_retry_message,
    failure_kind,
    failure_message,
    state_kind,
)
from executor_adapter.prefect.options.retries import prefect_retry_options

History = Literal["auto", "full", "final"]


class Step(NamedTuple):
    """A transition, with those facts of the job that may change before the event is sent."""

    status: JobStatus
    at: float
    attempt: int
    error: ErrorFacts | None
    retry_at: float | None
    node: str | None = None
    """The host on which the attempt begins, if that is another one."""

    @property
    def is_final(self) -> bool:
        """Whether no step follows this one."""
        return self.status in TERMINAL


Entry = TypeVar("Entry", Step, Change)
"""One state change, in the form in which it is stored until it is sent."""


class TaskRunHistory(Generic[Entry]):
    """The unsent state changes of one task run. They are turned into events, or skipped, in their order."""

    __slots__ = ("_tags", "id", "is_finished", "job_id", "unsent")

    def __init__(self, task_run_id: str, job_id: str, tags: Iterable[str] = ()) -> None:
        """`tags` are those of the task run alone: its events are related to them."""
        self.id = task_run_id
        self.job_id = job_id
        self.unsent: tuple[Entry, ...] = ()  # A tuple, since it is short and the empty one takes no memory.
        self.is_finished = False
        self._tags = tuple(
            json.dumps({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"})
            for tag in sorted(tags)
        )

    def add(self, step: Entry) -> None:
        """Append a state change. A finished task run stays finished when a transaction rolls it back."""
        self.unsent += (step,)
        self.is_finished = self.is_finished or step.is_final

    def change_of(self, step: Entry, flow: FlowRunFacts) -> Change:
        """Return what the event of a step is made of, which must be the next one."""
        assert isinstance(step, Change), "a history of steps makes the changes itself"
        return step

    def skip(self, step: Entry) -> None:
        """Take account of a step, which must be the next one, without an event: a change is complete by itself."""

    def _related(self, flow: FlowRunFacts) -> str:
        """Return what all of the flow run are related to, and the task run's own tags; see `event_body`."""
        return ",".join(filter(None, (flow.related, *(tag for tag in self._tags if tag not in flow.related))))

    def next_event(self, flow: FlowRunFacts) -> StateEvent:
        """Remove the first unsent step and return its event."""
        step, self.unsent = self.unsent[0], self.unsent[1:]
        change = self.change_of(step, flow)
        body = event_body(self.id, change, self._related(flow))
        return StateEvent(*(self.id, change.name, change.at, change.is_final, body, self.job_id), flow_run_id=flow.id)

    def skip_intermediate(self) -> int:
        """Skip all unsent steps but the last, and return how many they were."""
        intermediate = self.unsent[:-1]
        for step in intermediate:
            self.skip(step)
        self.unsent = self.unsent[-1:]
        return len(intermediate)


# --- jobs ---

NO_FLOW_RUN = UUID("0192d1c1-58a4-7c5e-9d3b-6f1c9a7e4b20")
"""Namespace for the ids of task runs without a flow run."""

MAX_NAMED_ID_LENGTH = 24
"""Longest job id that a task run's name shows whole; of a longer one it shows the end."""

SHORT_ID_LENGTH = 8


def step_of(transition: Transition) -> Step:
    """Return what has to be remembered of a transition. Runs on the supervisor's thread, so it is quick."""
    job, _, status, at, attempt, error = transition
    state = job.state
    if status in TERMINAL:
        at = state.completed_at or at
    elif status is JobStatus.RUNNING:
        at = (state.started_at or at) if attempt <= 1 else at
        if job.live.assignment is not None:
            return Step(status, at, attempt, error, state.retry_at, job.live.assignment.node)
    return Step(status, at, attempt, error, state.retry_at)


class JobHistory(TaskRunHistory[Step]):
    """One job's task run: its facts, its unsent transitions, and its times up to the last event."""

    __slots__ = (
        *("name", "task_key", "dynamic_key", "policy", "created_at"),
        *("_max_attempts", "_kind", "_last_at", "_running_since", "_started_at", "_run_seconds"),
    )

    def __init__(self, job: Job, task_run_id: str) -> None:
        job_id = job.job_id
        super().__init__(task_run_id, job_id)
        label, self.task_key = _function_facts(job.function)
        shown_id = job_id if len(job_id) <= MAX_NAMED_ID_LENGTH else job_id[-SHORT_ID_LENGTH:]
        self.name = quoted(f"{label}-{shown_id}")
        self.dynamic_key = quoted(job_id)
        self.policy = _policy_json(job.policy)
        self._max_attempts = job.policy.retry_attempts + 1
        self.created_at = job.state.created_at
        self._kind: StateKind | None = None
        self._last_at = 0.0
        self._running_since: float | None = None
        self._started_at = job.state.started_at  # Set already for a job that was recovered from a store.
        self._run_seconds = 0.0

    def skip(self, step: Step) -> None:
        """Add the step to the task run's times, without an event."""
        # The server ignores a state that is not newer than the last one, and a clock may be set back.
        at = self._last_at = round(max(step.at, self._last_at + CLOCK_RESOLUTION_SECONDS), 6)
        if self._running_since is not None:
            self._run_seconds += max(0.0, at - self._running_since)
            self._running_since = None
        if step.status is JobStatus.RUNNING:
            self._running_since = at
            self._started_at = self._started_at or at
        self._kind = self._kind_of(step)

    def change_of(self, step: Step, flow: FlowRunFacts) -> Change:
        """Return the change that a step is, with the task run's times up to it."""
        left = self._kind
        self.skip(step)
        assert self._kind is not None
        (kind, name), at, message = self._kind, iso(self._last_at), quoted(self.message_of(step)[:MAX_MESSAGE_LENGTH])
        due_at = step.retry_at if step.status is JobStatus.RETRYING else None
        details = "{}" if due_at is None else f'{{"scheduled_time":"{iso(due_at)}"}}'
        return Change(
            *(state_id(self.id, self._last_at), self._last_at, kind.value, name, message, details),
            NO_PREVIOUS_STATE if left is None else previous_state(left.type.value, left.name),
            step.attempt,
            self.name,
            self._task_run(step, at, flow),
        )

    def _task_run(self, step: Step, at: str, flow: FlowRunFacts) -> str:
        """Return the task run as JSON; `at` is the time of the step in the server's format."""
        times = f'"expected_start_time":"{iso(self.created_at)}","total_run_time":{self._run_seconds:.6f}'
        if (started := self._started_at) is not None:
            times += f',"start_time":"{at if started == self._last_at else iso(started)}"'
        if step.status in TERMINAL:
            times += f',"end_time":"{at}"'
        return (
            f'{{"name":{self.name},"task_key":{self.task_key},"dynamic_key":{self.dynamic_key},'
            f'"empirical_policy":{self.policy},"tags":{flow.tags},"labels":{{}},"task_inputs":{{}},'
            f'"run_count":{step.attempt},"flow_run_run_count":{flow.run_count},{times}}}'
        )

    def _kind_of(self, step: Step) -> StateKind:
        if step.error is not None and step.status in TERMINAL:
            return failure_kind(step.error)
        return state_kind(step.status, attempt=step.attempt)

    def message_of(self, step: Step) -> str:
        """Return the message of the state that a step leads to."""
        if step.error is None:
            return "" if step.node is None else f"on {step.node}"
        if step.status is JobStatus.RETRYING:
            return awaiting_retry_message(step.error, attempt=step.attempt, attempts=self._max_attempts)
        return failure_message(step.error) if step.status in TERMINAL else ""


class GroupHistory(JobHistory):
    """The task run of a group of jobs. It has the function of the first one, and a number."""

    __slots__ = ("summary",)

    def __init__(self, flow_run_id: UUID | None, first: Job, number: int) -> None:
        super().__init__(first, str(uuid5(flow_run_id or NO_FLOW_RUN, f"group {number} of {first.job_id}")))
        label, _ = _function_facts(first.function)
        self.job_id = f"group {number} of {first.job_id}"
        self.name = quoted(f"{label}-group-{number}")
        self.dynamic_key = quoted(self.job_id)
        self.policy = _policy_json(_NO_RETRIES)
        self.summary = ""
        """How its jobs have ended: the message of its final state."""

    def message_of(self, step: Step) -> str:
        return self.summary if step.status in TERMINAL else ""


_NO_RETRIES = RetryPolicy(retry_attempts=0)


def task_run_id(flow_run_id: UUID | None, job: Job) -> str:
    """Return the id of a job's task run.

    It depends on the flow run and the job's id alone, so that a retried flow run finds the same task runs. Without a
    flow run it depends on the job's id and creation time, and stays the same when another host takes the job over.
    """
    if flow_run_id is not None:
        return str(uuid5(flow_run_id, job.job_id))
    return str(uuid5(NO_FLOW_RUN, f"{job.job_id} {job.state.created_at:.6f}"))  # An id may be used again.


def _function_facts(function: Callable[..., Any] | str) -> tuple[str, str]:
    """Return the name that a function's task runs start with, and their task key as JSON."""
    reference = function_reference(function)
    return reference.rpartition(":")[2].rpartition(".")[2], quoted(reference)


@functools.lru_cache(maxsize=64)
def _policy_json(policy: RetryPolicy) -> str:
    """Return the retry policy as the task run's `empirical_policy`."""
    shown = prefect_retry_options(policy)
    delay, jitter = shown["retry_delay_seconds"], shown["retry_jitter_factor"]
    of_run = TaskRunPolicy(retries=shown["retries"], retry_delay=delay, retry_jitter_factor=jitter)
    return of_run.model_dump_json(exclude_unset=True)


# --- task runs of engines ---

_UNSENT_FIELDS = {
    *{"id", "created", "updated", "flow_run_id", "state_id", "state_type", "state_name", "state"},
    *{"estimated_start_time_delta", "estimated_run_time"},  # The server computes these.
}
_ID_FIELDS = {"flow_run_id", "task_run_id"}


def engine_change(task_run: TaskRun, state: State[Any], previous: State[Any] | None) -> Change:
    """Record that `task_run`, as it is now, enters `state`.

    Call it in the task run's context, which decides whether results are persisted.
    """
    return Change(
        id=str(state.id),
        at=state.timestamp.timestamp(),
        type=state.type.value,
        name=state.name or "",
        message=_message(state),
        details=_details(state),
        data=_data(state),
        previous=NO_PREVIOUS_STATE if previous is None else _previous(previous),
        run_count=task_run.run_count,
        run_name=quoted(task_run.name),
        task_run=_json(task_run, exclude_none=True, exclude=_UNSENT_FIELDS),
    )


def _json(model: BaseModel, **how: Any) -> str:
    try:
        return model.model_dump_json(**how)
    except ValueError:  # It refuses half a surrogate pair.
        return json.dumps(model.model_dump(mode="json", **how))


def _previous(state: State[Any]) -> tuple[str, str]:
    return previous_state(state.type.value, state.name or "", _message(state), _details(state))


def _message(state: State[Any]) -> str:
    return quoted((state.message or "")[:MAX_MESSAGE_LENGTH])


def _details(state: State[Any]) -> str:
    return _json(state.state_details, exclude_none=True, exclude_unset=True, exclude=_ID_FIELDS)


def _data(state: State[Any]) -> str:
    """Return where the result is stored, if it is persisted, as JSON."""
    data: Any = state.data
    return _json(data.metadata) if isinstance(data, ResultRecord) and should_persist_result() else "null"


# --- the queue ---

UNSENT_LIMIT = 500
"""Unsent changes above which "auto" skips the intermediate states of finished jobs, and of those with `FEW_UNSENT`.

A small server (tests/benchmarks/test_pace.py) is done with 3,000 short jobs after 69.7 s; with 5,000, after 116.
"""

FEW_UNSENT = 50
"""The same limit while the process is about to end; and the changes of one unfinished job above which all but the
newest are skipped, while there are too many.

At an end that hurries a small server has the final states of 160 jobs after 4.1 s; with 500, after 10.2. A job that
fails and retries for as long as the server is away would keep all its changes otherwise.
"""


class UnsentChanges:
    """A queue of state changes. Any thread may call `append`; the other methods are for one thread at a time."""

    def __init__(self, history: History) -> None:
        if history not in ("auto", "full", "final"):
            raise ValueError(f"history={history!r} is unknown: choose 'auto', 'full' or 'final'")
        self.omitted = 0
        """Intermediate states that were skipped, because newer ones of their jobs waited too."""
        self.is_hurried = False
        """Whether only finished jobs are sent, with few intermediate states, because the process is about to end."""
        self.stored = 0
        """Finished task runs that wait elsewhere, and were here before."""
        self._history = history
        self._inbox: deque[tuple[TaskRunHistory[Any], Any]] = deque()
        self._waiting: OrderedDict[TaskRunHistory[Any], None] = OrderedDict()
        """The task runs with unsent changes."""
        self._finished: OrderedDict[TaskRunHistory[Any], None] = OrderedDict()
        """The finished ones of them."""
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._count or self._inbox)

    def append(self, history: TaskRunHistory[Entry], step: Entry) -> None:
        """Append a state change of a task run."""
        self._inbox.append((history, step))

    def take_in(self) -> None:
        """Sort the appended changes into the queues. Not done in `append`, which must be quick."""
        for _ in range(len(self._inbox)):
            history, step = self._inbox.popleft()
            self._waiting[history] = None
            history.add(step)
            self._count += 1
            if history.is_finished:
                self._finished[history] = None
            if history.is_finished or len(history.unsent) > FEW_UNSENT:
                self._skip_if_behind(history)

    def next_events(self, limit: int, flow: FlowRunFacts) -> list[StateEvent]:
        """Remove the changes to be sent next, at most `limit`, and return their events."""
        self.take_in()
        events: list[StateEvent] = []
        queue = self._finished if self.is_hurried else self._waiting
        while len(events) < limit and (history := next(iter(queue), None)) is not None:
            if history.is_finished:
                self._skip_if_behind(history)
            events += self._events_of(history, flow, limit - len(events))
        return events

    def final_events(self, flow: FlowRunFacts) -> Iterator[StateEvent]:
        """Yield the unsent final states. For the end, when nothing more is sent."""
        for history in list(self.finished()):
            self._skip_intermediate(history)
            yield from self._events_of(history, flow)

    def take_finished(self, flow: FlowRunFacts, limit: int) -> list[StateEvent]:
        """Remove the task runs that have finished, the oldest first, and return their events, `limit` or a few more."""
        self.take_in()
        events: list[StateEvent] = []
        while self._finished and len(events) < limit:
            history = next(iter(self._finished))
            self._skip_if_behind(history)
            events += self._events_of(history, flow)
        return events

    def _events_of(
        self, history: TaskRunHistory[Any], flow: FlowRunFacts, limit: int | None = None
    ) -> list[StateEvent]:
        """Remove the unsent changes of a task run, at most `limit`, and return their events."""
        events = [history.next_event(flow) for _ in history.unsent[:limit]]
        self._count -= len(events)
        if not history.unsent:
            del self._waiting[history]
            self._finished.pop(history, None)
        return events

    def finished(self) -> Collection[TaskRunHistory[Any]]:
        """Return the task runs whose final state is not sent."""
        self.take_in()
        return self._finished

    def _skip_if_behind(self, history: TaskRunHistory[Any]) -> None:
        """Skip the intermediate states of a job, if the mode and the number of unsent changes ask for it."""
        is_behind = self._count + self.stored > (FEW_UNSENT if self.is_hurried else UNSENT_LIMIT)
        if self._history == "final" or (self._history == "auto" and is_behind):
            self._skip_intermediate(history)

    def _skip_intermediate(self, history: TaskRunHistory[Any]) -> None:
        omitted = history.skip_intermediate()
        self.omitted += omitted
        self._count -= omitted
