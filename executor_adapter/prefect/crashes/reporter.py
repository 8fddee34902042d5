"""The reporter: the program that the sentinel starts when its host has died, see `executor_adapter.worker.sentinel`.

It ends what the host has left unfinished: first what is in the outbox is sent, then its flow runs end, unless a
runner, a worker or another process takes care of them, then their task runs.

A runner (`flow.serve`) or a worker marks the flow run of its process as Crashed or Cancelled, or it was rescheduled.
So the reporter waits for that, and ends such a flow run itself only if nobody does. It is started without the host's
terminal, so it writes to nobody: a death that it cannot report it keeps on disk, for `executor-adapter prefect sweep`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from prefect.settings import get_current_settings

from executor_adapter.prefect.crashes.closing import DIED, Closing
from executor_adapter.prefect.crashes.fate import Fate, fate_of
from executor_adapter.prefect.crashes.records import FlowRunRecord
from executor_adapter.prefect.crashes.unreported import Death, UnreportedDeaths
from executor_adapter.prefect.mirror.mirror import PrefectMirror
from executor_adapter.prefect.mirror.server_api import RejectedError, ServerApi, server_name
from executor_adapter.worker import is_held

TIMEOUT = 60.0
"""Seconds for everything, and so for which a server that cannot be reached is asked again."""

WORKERS_TIMEOUT = 6.0
"""Seconds for the workers of the dead process to be dead: a little longer than a guardian takes to kill them."""

WORKERS_POLL_INTERVAL = 0.02

RUNNER_TIMEOUT = 20.0
"""Seconds for a runner or worker to end the flow run of its dead process."""

DEAD_RUNNER_TIMEOUT = 2.0
"""The same where the runner has died too: what it has sent may still be on its way."""

POLL_INTERVAL = 0.25
RECONNECT_INTERVAL = 1.0


def main(timeout: float = TIMEOUT) -> None:
    """Report the death that stdin describes within `timeout` seconds, or keep it on disk for a sweep."""
    death = json.load(sys.stdin)
    if is_server_configured():
        wait_for_workers(death["presence"])
        known = Death(death["flow_runs"], death["died_at"], managed=os.environ.get("PREFECT__FLOW_RUN_ID"))
        if not report(known, runner=death["parent"], timeout=timeout):
            UnreportedDeaths(server_name()).keep(known)


def wait_for_workers(presence: str, timeout: float = WORKERS_TIMEOUT) -> None:
    """Wait until no worker of the dead process is alive, since the guardians are killing them."""
    until = time.monotonic() + timeout
    while presence and is_held(presence) and time.monotonic() < until:
        time.sleep(WORKERS_POLL_INTERVAL)


def is_server_configured() -> bool:
    """Return whether there is a server to report to: a configured one, or the embedded one's database.

    The embedded server ended with the host. Its database is on this machine, where a server that the reporter starts
    finds it; a database that does not exist holds no record either.
    """
    settings = get_current_settings()
    if settings.api.url is not None:
        return True
    url = settings.server.database.connection_url
    if not settings.server.ephemeral.enabled or url is None:
        return False
    scheme, _, database = url.get_secret_value().partition("///")
    return not scheme.startswith("sqlite") or Path(database.partition("?")[0]).is_file()


def is_alive(pid: int) -> bool:
    """Return whether a process has this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def report(death: Death, *, runner: int, timeout: float = TIMEOUT) -> bool:
    """End the flow runs that the dead process had run, with their task runs, within `timeout` seconds.

    `runner` is the pid of the runner or worker that had started the process. Returns whether the server has recorded
    everything.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            with ServerApi.connected() as api:
                if Report(Closing(api, deadline), death, runner).run(before_ends=send_inherited):
                    return True
        except (httpx.HTTPError, RejectedError):
            pass
        time.sleep(RECONNECT_INTERVAL)
    return False


class Report:
    """One attempt to end what a dead process has left.

    `runner` is the pid of the runner or worker that had started it; None if that is not known to be alive either.
    """

    def __init__(self, closing: Closing, death: Death, runner: int | None) -> None:
        self._death = death
        self._runner = runner
        self._closing = closing

    def run(self, before_ends: Callable[[], None] = lambda: None) -> bool:
        """End everything, but call `before_ends` first; return whether the server has recorded it."""
        runs = self.find()
        if self._death.managed in runs and self._wait_for_runner(self._death.managed) is Fate.CONTINUES:
            return True
        fates = {run.id: self.fate(run) for run in runs.values()}
        before_ends()
        for run_id, fate in fates.items():
            self._end(runs[run_id], fate)
        ended = {run_id: run for run_id, run in runs.items() if fates[run_id] is not Fate.CONTINUES}
        return self._closing.end_task_runs(ended, self._death.died_at)

    def find(self) -> dict[str, FlowRunRecord]:
        """Return the flow runs of the dead process, by id."""
        return self._closing.records.in_same_process(self._death.run_counts, callers=True)

    def fate(self, run: FlowRunRecord) -> Fate:
        """Return what becomes of a flow run of the dead process."""
        if run.id == self._death.managed:
            run = dataclasses.replace(run, is_deployed=True)
        return fate_of(run, self._death.run_counts.get(run.id))

    def _wait_for_runner(self, run_id: str) -> Fate:
        """Wait until the runner has ended the flow run of its dead process, and return what becomes of it."""
        began = time.monotonic()
        while True:
            run = self._closing.records.flow_runs([run_id]).get(run_id)
            if run is None:  # It was deleted.
                return Fate.ENDED
            fate = self.fate(run)
            is_runner_alive = self._runner is not None and is_alive(self._runner)
            limit = RUNNER_TIMEOUT if is_runner_alive else DEAD_RUNNER_TIMEOUT
            if fate in (Fate.ENDED, Fate.CONTINUES) or time.monotonic() >= began + limit or self._closing.is_late:
                return fate
            time.sleep(POLL_INTERVAL)

    def _end(self, run: FlowRunRecord, fate: Fate) -> None:
        if fate is Fate.CRASH:
            self._closing.set_flow_run_state(run, "CRASHED", DIED)
        elif fate is Fate.CANCEL:
            self._closing.set_flow_run_state(run, "CANCELLED", f"Flow run was cancelled. {DIED}")


def send_inherited() -> None:
    """Send the states that the dead process has left in the outbox."""
    with PrefectMirror() as mirror:
        mirror.send_inherited()
