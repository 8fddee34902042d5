"""Clusters over the three hosts: one suite of faults for all engines."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from executor_adapter.config import ClusterSettings, DaskSettings, RaySettings, SshHostSettings, SshSettings
from tests.contract.cluster.dask_cluster import DaskCluster
from tests.contract.cluster.hosts import CLIENT, HOSTS, inside, three_hosts
from tests.contract.cluster.ray_cluster import ENVIRONMENT, RayCluster
from tests.contract.cluster.sshd import ROOT, SshServer
from tests.waiting import PATIENCE

SLOTS = 3
"""Slots of each host."""
FarPool = Literal["ssh", "dask", "ray"]
FAR_POOLS: tuple[FarPool, ...] = ("ssh", "dask", "ray")


class FarCluster(ABC):
    """A cluster whose nodes are the three hosts, with some slots each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def start(self) -> None:
        """Start the head, and all hosts."""
        for host in HOSTS:
            self.start_host(host)

    @abstractmethod
    def start_host(self, host: str) -> None:
        """Let a host take jobs, after it was switched off too."""

    @abstractmethod
    def settings(self, lost_after: float) -> ClusterSettings:
        """Return the settings by which a program uses it."""

    @abstractmethod
    def stop(self) -> None:
        """End the head, and what was started on the hosts."""


class _SshHosts(FarCluster):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._servers = {host: SshServer(folder / host, (host,), at, inside(host)) for host, at in HOSTS.items()}
        configs = [(server.folder / "ssh_config").read_text() for server in self._servers.values()]
        (folder / "ssh_config").write_text("".join(configs))

    def start_host(self, host: str) -> None:
        self._servers[host].stop()
        self._servers[host].start()

    def settings(self, lost_after: float) -> ClusterSettings:
        hosts = tuple(
            SshHostSettings(host=host, slots=SLOTS, python=server.python, directory=str(ROOT))
            for host, server in self._servers.items()
        )
        ssh = SshSettings(hosts=hosts, command=("ssh", "-F", str(self.folder / "ssh_config")))
        return ClusterSettings(ssh=ssh, lost_after=lost_after)

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()


class _DaskHosts(FarCluster):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cluster = DaskCluster(folder)

    def start(self) -> None:
        self._cluster.start_scheduler(CLIENT)
        super().start()
        self._cluster.wait_for_workers(len(HOSTS))

    def start_host(self, host: str) -> None:
        self._cluster.start_worker(SLOTS, HOSTS[host], inside(host))

    def settings(self, lost_after: float) -> ClusterSettings:
        return ClusterSettings(dask=DaskSettings(**json.loads(self._cluster.settings())), lost_after=lost_after)

    def stop(self) -> None:
        self._cluster.stop()


class _RayHosts(FarCluster):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._cluster = RayCluster(host=CLIENT)
        self._nodes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        # One after another: nodes that start at once on one file system take the same names for their sockets.
        for number, host in enumerate(HOSTS, start=2):
            self.start_host(host)
            until = time.monotonic() + 60
            while self._cluster.count_nodes() < number:
                assert time.monotonic() < until, (self.folder / "nodes.log").read_text()
                time.sleep(0.1)

    def start_host(self, host: str) -> None:
        options = ["--address", self._cluster.address, "--node-ip-address", HOSTS[host], "--num-cpus", str(SLOTS)]
        command = [*inside(host), sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        command += ["--object-store-memory", "100000000", "--disable-usage-stats"]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        with (self.folder / "nodes.log").open("ab") as log:
            self._nodes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))

    def settings(self, lost_after: float) -> ClusterSettings:
        return ClusterSettings(ray=RaySettings(**json.loads(self._cluster.settings())), lost_after=lost_after)

    def stop(self) -> None:
        for node in self._nodes:
            node.kill()
            node.wait(PATIENCE)
        self._cluster.stop()


@contextlib.contextmanager
def far_cluster(pool: FarPool, folder: Path) -> Iterator[FarCluster]:
    """Run a cluster over the three hosts while the block lasts."""
    kinds: dict[FarPool, type[FarCluster]] = {"ssh": _SshHosts, "dask": _DaskHosts, "ray": _RayHosts}
    with three_hosts():
        cluster = kinds[pool](folder)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def host_of(node: str | None) -> str:
    """Return the host of a node, which engines name by its address."""
    return next(host for host, at in HOSTS.items() if host == node or f"//{at}:" in str(node) or f"{at}/" in str(node))
