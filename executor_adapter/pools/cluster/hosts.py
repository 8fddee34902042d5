"""The hosts of `pool="ssh"`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

AGENT_MODULE = "executor_adapter.pools.cluster.ssh_agent"


class SshHost(NamedTuple):
    """A host, as the settings name it."""

    host: str
    """What ssh is given: a name, user@name, or a Host of its configuration."""
    slots: int
    """Attempts that may run there at once."""
    python: str = "python3"
    """The command of the host's shell that runs Python, with this package installed."""
    directory: str | None = None
    """The directory in which the agent runs; None: that of the login."""


def agent_command(host: SshHost, ssh_command: Sequence[str], *arguments: str) -> list[str]:
    """Return the command that starts the agent's program on a host."""
    start = " ".join(["exec", host.python, "-m", AGENT_MODULE, *arguments])
    if host.directory is not None:
        start = f"cd {shlex.quote(host.directory)} && {start}"
    return [*ssh_command, "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host.host, start]
