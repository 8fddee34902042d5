"""How the agent of a host of `pool="ssh"` is started."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from executor_adapter.config import SshHostSettings

AGENT_MODULE = "executor_adapter.pools.cluster.agent_program"


def agent_command(host: SshHostSettings, ssh_command: Sequence[str], *arguments: str) -> list[str]:
    """Return the command that starts the agent's program on a host."""
    start = " ".join(["exec", host.python, "-m", AGENT_MODULE, *arguments])
    if host.directory is not None:
        start = f"cd {shlex.quote(host.directory)} && {start}"
    return [*ssh_command, "-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host.host, start]
