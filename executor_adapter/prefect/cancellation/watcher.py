"""Reads the states of flow runs while their jobs live, so that a cancel reaches them wherever they run.

    watch = watch_flow_run(flow_run_id, end_all_jobs)     # called once, on a thread of its own
    ...
    watch.close()

A runner or a worker tells a flow's process of a cancel by a signal; a flow run that was started by hand has nobody who
does, and would stay Cancelling. So one thread a process asks the server every two seconds, one request for all flow
runs that are watched. A server that is away has told of no cancel, and is asked again.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import NamedTuple
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import StateType
from prefect.utilities.engine import is_prefect_sigterm_handler_installed

from executor_adapter.executor.signals import ending_handlers, signal_watch
from executor_adapter.prefect.cancellation.flow_end import OWN_CLIENT, FlowEnd

logger = logging.getLogger("executor_adapter.prefect")

POLL_SECONDS = 2.0
IDLE_POLLS = 5
"""After so many without a flow run to ask for, the thread ends."""

PAGE = 200
"""Flow runs asked for at once: the most that the server gives."""

CANCELS = frozenset({StateType.CANCELLING.value, StateType.CANCELLED.value})


class _Known(NamedTuple):
    """What the server says of a flow run."""

    state_type: str | None
    parent_task_run_id: str | None


class FlowRunWatch:
    """Somebody's wish to hear that a flow run is cancelled; see `watch_flow_run`."""

    def __init__(self, run: _WatchedRun, on_cancel: Callable[[], object], *, until_flow_ends: bool) -> None:
        self.run = run
        self.until_flow_ends = until_flow_ends
        self._on_cancel = on_cancel

    @property
    def cancelled(self) -> bool:
        """Whether the flow run is known to be cancelled."""
        return self.run.cancelled

    def tell(self) -> None:
        try:
            self._on_cancel()
        except Exception:
            logger.exception("a flow run was cancelled, but not all of its jobs could be told")

    def jobs_finished(self) -> None:
        """Say that the flow run's jobs are over, and that it is not, since the server is being told of them: it is not
        to be interrupted in that."""
        self.run.end.jobs_finished()

    def close(self) -> None:
        """Hear nothing more. Closing one that is `until_flow_ends` says that the flow run is over."""
        _watcher.close(self)


def watch_flow_run(
    flow_run_id: UUID, on_cancel: Callable[[], object], *, until_flow_ends: bool = False
) -> FlowRunWatch:
    """Have `on_cancel()` called once the flow run, or one that it is a subflow run of, is Cancelling or Cancelled.

    Called in the flow run. `on_cancel` ends its jobs and begins no further ones; it returns at once, since it is called
    on the thread that watches, or before this returns, where the cancel is known already. `until_flow_ends`: for who
    sees the flow run end, and closes the watch then: a task runner. Only then can a cancelled flow be interrupted in
    what else it does, and be told Cancelled the moment it is over.
    """
    return _watcher.add(flow_run_id, on_cancel, until_flow_ends=until_flow_ends)


class _WatchedRun:
    """A flow run, and those it is a subflow run of, as far as they are known."""

    def __init__(self, flow_run_id: UUID) -> None:
        self.lineage = [flow_run_id]
        self.complete = False
        """Whether the last of the lineage is no subflow run."""
        self.cancelled = False
        self.watches: list[FlowRunWatch] = []
        self.end = FlowEnd(flow_run_id)

    def learn(self, client: SyncPrefectClient, known: dict[UUID, _Known]) -> None:
        """Find out what the eldest of the lineage is a subflow run of."""
        eldest = known.get(self.lineage[-1])
        if self.complete or eldest is None:
            return
        if eldest.parent_task_run_id is None:
            self.complete = True
            return
        parent = _flow_run_of(client, eldest.parent_task_run_id)
        if parent is not None:
            self.lineage.append(parent)

    def cancel(self, asked_of: UUID) -> None:
        """Tell those who watch; `asked_of` is the flow run that was cancelled, this one or an elder."""
        with _watcher.lock:
            self.cancelled = True
            watches = list(self.watches)
        logger.warning("flow run %s was cancelled: its jobs are ended", asked_of)
        # First, so that flow runs are Cancelling, if that can be, before what they wait for raises in them.
        self.end.begin(self.lineage[: self.lineage.index(asked_of) + 1])
        for watch in watches:
            watch.tell()


class _Watcher:
    """The one thread that asks, while there is something to ask for."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self._runs: dict[UUID, _WatchedRun] = {}
        self._cancelled: set[UUID] = set()
        self._running = False

    def add(self, flow_run_id: UUID, on_cancel: Callable[[], object], *, until_flow_ends: bool) -> FlowRunWatch:
        with self.lock:
            run = self._runs.get(flow_run_id)
            if run is None:
                signal_watch.arm()
                run = self._runs[flow_run_id] = _WatchedRun(flow_run_id)
                run.cancelled = flow_run_id in self._cancelled
            watch = FlowRunWatch(run, on_cancel, until_flow_ends=until_flow_ends)
            run.watches.append(watch)
            run.end.opened(whole=until_flow_ends)
            if not self._running:
                self._running = True
                context = copy_context()  # with the caller's settings
                threading.Thread(target=context.run, args=(self._ask,), name="cancel-watch", daemon=True).start()
        if run.cancelled:
            watch.tell()
        return watch

    def close(self, watch: FlowRunWatch) -> None:
        run = watch.run
        with self.lock:
            if watch not in run.watches:
                return
            run.watches.remove(watch)
            if not run.watches:
                del self._runs[run.lineage[0]]
        run.end.closed(whole=watch.until_flow_ends)

    def _ask(self) -> None:
        over = False
        while not over:
            try:
                # Kept while the server answers: to make one takes longer than to ask.
                with get_client(sync_client=True, httpx_settings=OWN_CLIENT) as client:
                    over = self._ask_by(client)
            except Exception as error:
                logger.debug("the server cannot be asked for flow runs: %r", error)
                self._wait_for_runs()

    def _ask_by(self, client: SyncPrefectClient) -> bool:
        """Ask until there is nothing to ask for; True then."""
        idle = 0
        while idle < IDLE_POLLS or not self._ended():
            runs = self._wait_for_runs()
            idle = 0 if runs else idle + 1
            self._look(client, runs)
        return True

    def _wait_for_runs(self) -> list[_WatchedRun]:
        with self.lock:
            self.lock.wait(POLL_SECONDS)
            return [run for run in self._runs.values() if not run.cancelled]

    def _ended(self) -> bool:
        with self.lock:
            self._running = bool(self._runs)
            return not self._running

    def _look(self, client: SyncPrefectClient, runs: list[_WatchedRun]) -> None:
        known = _read(client, {each for run in runs for each in run.lineage})
        for run in runs:
            self._judge(run, known)
        for run in runs:
            run.learn(client, known)

    def _judge(self, run: _WatchedRun, known: dict[UUID, _Known]) -> None:
        for each in run.lineage:
            if each in known and known[each].state_type in CANCELS:
                self._cancelled.update(run.lineage[:1])
                run.cancel(each)
                return


# In plain JSON: a daemon thread that the interpreter's end meets within pydantic aborts the process.


def _read(client: SyncPrefectClient, ids: Iterable[UUID]) -> dict[UUID, _Known]:
    wanted, known = [str(each) for each in ids], {}
    for start in range(0, len(wanted), PAGE):
        question = {"flow_runs": {"id": {"any_": wanted[start : start + PAGE]}}, "limit": PAGE}
        for run in client.request("POST", "/flow_runs/filter", json=question).json():
            known[UUID(run["id"])] = _Known(run["state_type"], run["parent_task_run_id"])
    return known


def _flow_run_of(client: SyncPrefectClient, task_run_id: str) -> UUID | None:
    """The flow run that the task run belongs to; None where it is not recorded yet, or belongs to none."""
    try:
        found = client.request("GET", "/task_runs/{id}", path_params={"id": task_run_id}).json()
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return None
        raise
    return None if found["flow_run_id"] is None else UUID(found["flow_run_id"])


_watcher = _Watcher()

# Under Prefect SIGTERM raises in the flow, and the process ends.
ending_handlers.append(lambda number, _: number == signal.SIGTERM and is_prefect_sigterm_handler_installed())
