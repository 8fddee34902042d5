"""The reporter: the program that the sentinel starts when its host has died, see `executor_adapter.worker.sentinel`.

It ends what the host has left unfinished: first what is in the outbox is sent, then its flow runs end, unless a
runner, a worker or another process takes care of them, then their task runs.

A runner (`flow.serve`) or a worker marks the flow run of its process as Crashed or Cancelled, or it was rescheduled.
So the reporter waits for that, and ends such a flow run itself only if nobody does. It is started without the host's
terminal, so it writes to nobody: a death that it cannot report it keeps in the outbox, for
`executor-adapter prefect sweep`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from prefect.settings import get_current_settings

from executor_adapter.prefect.crashes.fate import Death, Fate
from executor_adapter.prefect.crashes.sweep import Closing, end_dead
from executor_adapter.prefect.mirror.mirror import TaskRunMirror
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.prefect.mirror.server import ServerApi, server_name
from executor_adapter.worker.presence import is_held

TIMEOUT = 60.0
"""Seconds for everything, and so for which a server that cannot be reached is asked again."""

WORKERS_TIMEOUT = 6.0
"""Seconds for the workers of the dead process to be dead: a little longer than a guardian takes to kill them."""

WORKERS_POLL_INTERVAL = 0.02

RUNNER_TIMEOUT = 6.0
"""Seconds from the death for a runner or worker to end the flow run of its process, and call its hooks for a crash.

One that fails to, which it only logs, or has died too, delays the truth by no more: it shall be there within ten.
"""

POLL_INTERVAL = 0.25
RECONNECT_INTERVAL = 1.0


def main(timeout: float = TIMEOUT) -> None:
    """Report the death that stdin describes within `timeout` seconds, or keep it for a sweep."""
    death = json.load(sys.stdin)
    if is_server_configured():
        wait_for_workers(death["presence"])
        known = Death(death["flow_runs"], death["died_at"], managed=os.environ.get("PREFECT__FLOW_RUN_ID"))
        if not report(known, timeout=timeout):
            OutboxFile(server_name()).keep_death(json.dumps(known._asdict()))


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


def report(death: Death, *, timeout: float = TIMEOUT) -> bool:
    """End the flow runs that the dead process had run, with their task runs, within `timeout` seconds.

    Returns whether the server has recorded everything.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            with ServerApi.connected() as api:
                closing = Closing(api, deadline)
                send_inherited()  # Meanwhile the runner ends the flow run.
                _wait_for_runner(closing, death)
                _, is_recorded = end_dead(closing, death)
                if is_recorded:
                    return True
        except Exception:  # Whatever it is, the death must not be lost with this process.
            pass
        time.sleep(RECONNECT_INTERVAL)
    return False


def _wait_for_runner(closing: Closing, death: Death) -> None:
    """Wait until the runner has ended the flow run of its dead process, or its time is over."""
    until = (death.died_at or time.time()) + RUNNER_TIMEOUT
    while death.managed is not None and time.time() < until:
        run = closing.records.flow_runs([death.managed]).get(death.managed)
        if run is None or death.fate_of(run) in (Fate.ENDED, Fate.CONTINUES):
            return
        time.sleep(POLL_INTERVAL)


def send_inherited() -> None:
    """Send the states that the dead process has left in the outbox."""
    with TaskRunMirror() as mirror:
        mirror.send_inherited()
