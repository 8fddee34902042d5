"""The section `cluster`: the pools whose jobs run on other machines."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from executor_adapter.config.sections import Names, Section
from executor_adapter.job import Count, Number, Seconds

_ADDRESS = r"(?:[^][\s:/@]+|\[[^][\s/@]+\])(?::(\d+))?"
"""A host, or one of IPv6 in brackets, and its port."""


def _must(pattern: str, be: str) -> Any:
    """Return what checks a value by its text, and says what it must `be`. Groups of `pattern` are ports that ascend."""

    def check(value: int | str) -> int | str:
        found = re.fullmatch(pattern, str(value))
        ports = [*map(int, filter(None, found.groups())), 65_535] if found else []
        if not ports or ports != sorted(ports):
            raise ValueError(f"must be {be}")
        return value

    return AfterValidator(check)


class SshHostSettings(Section):
    """Describes a host that runs jobs of `pool: ssh`."""

    host: Annotated[str, _must(r"[^-\s]\S*", "a name, user@name or a Host of ssh's configuration")]
    """What ssh is given: a name, user@name, or a Host of its configuration."""
    slots: Count = Field(default=1, ge=1)
    """Attempts that may run there at once."""
    python: str = "python3"
    """The command that runs Python there, with this package installed; the host's shell reads it."""
    directory: str | None = None
    """The directory in which jobs run there; null: that of the login."""


class SshSettings(Section):
    """Sets the hosts of `pool: ssh`."""

    hosts: tuple[SshHostSettings, ...] = ()
    """The hosts, each with its slots."""
    command: Names = ("ssh",)
    """The ssh program and options for it, such as ["ssh", "-F", "/srv/ssh_config"]."""


class EngineSettings(Section):
    """Sets what the clusters of all engines have."""

    listen_host: str | None = None
    """The address of this machine at which it listens for nodes; null: that by which it reaches the cluster."""
    resources: dict[str, Annotated[Number, Field(gt=0)]] | None = None
    """What each running job takes of its node's resources, by name, unless its own say otherwise; null: a thread of a
    Dask worker, or one CPU of Ray."""


class DaskSettings(EngineSettings):
    """Sets the cluster of `pool: dask`."""

    address: Annotated[str, _must(r".*://.*", "like tcp://scheduler:8786")] | None = None
    """The scheduler, such as tcp://scheduler:8786; null: a local cluster that is started when it is needed."""


class RaySettings(EngineSettings):
    """Sets the cluster of `pool: ray`."""

    address: (
        Annotated[str, _must(r"auto|(?!.*://).*:.*", "host:port of a Ray cluster, such as 10.0.0.5:6379, or auto")]
        | None
    ) = None
    """The cluster, such as 10.0.0.5:6379 or "auto" for the one of this machine; null: the one that the program is
    connected to, or RAY_ADDRESS names, or else a local one that is started when it is needed."""


class ClusterSettings(Section):
    """Sets the pools whose jobs run on other machines. Times are seconds."""

    ssh: SshSettings = SshSettings()
    """The hosts of `pool: ssh`."""
    dask: DaskSettings = DaskSettings()
    """The cluster of `pool: dask`."""
    ray: RaySettings = RaySettings()
    """The cluster of `pool: ray`."""
    listen_port: Annotated[int | str, _must(r"(\d+)(?:-(\d+))?", "a port or range, such as 8790-8799")] | None = None
    """The port, or the range of ports such as 8790-8799, at which the program listens for nodes of a Dask or Ray
    cluster; null: any."""
    advertise: Annotated[str, _must(_ADDRESS, "a host or host:port")] | None = None
    """What such nodes connect to in place of the address at which the program listens: a host, or host:port."""
    lease_idle: Seconds = 10.0
    """Time after which a slot of a Dask or Ray cluster that no job uses is given back."""
    max_grant_seconds: Seconds = 2.0
    """Time after which a slot of a Dask or Ray cluster goes back between two jobs, where others wait for it."""
    lost_after: Seconds = 15.0
    """Time without contact after which a node ends its attempts; a moment later they are retried elsewhere."""
    node_timeout: Seconds | None = 60.0
    """Time for which jobs wait while no node can be reached, or none has the resources that they need; then they fail
    as WORKER_UNAVAILABLE; null: any time."""
