"""The checks of `doctor` on other machines: each node is asked what it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from executor_adapter.config import ClusterSettings
from executor_adapter.monitoring import Finding, fine, warning, wrong
from executor_adapter.pools import SshHost, describe_dask_workers, describe_ssh_host, differences

_NOT_THE_SAME = "functions and values may fail there: install the same versions"


def check_cluster(settings: ClusterSettings) -> Iterator[Finding]:
    """Check the hosts of `pool: ssh`, and the workers of a Dask cluster that has an address."""
    for host in settings.ssh.hosts:
        yield _check_ssh_host(SshHost(**host.model_dump()), settings.ssh.command)
    if settings.dask.address is not None:
        yield from _check_dask(settings.dask.address, settings.dask.listen_host)


def _check_ssh_host(host: SshHost, command: tuple[str, ...]) -> Finding:
    name = f"ssh host {host.host}"
    try:
        return _compare(name, host.host, describe_ssh_host(host, command))
    except OSError as error:
        way_out = f"try it by hand: ssh {host.host} {host.python} --version"
        return wrong(name, str(error), f"no job runs there: {way_out}")


def _check_dask(address: str, listen_host: str | None) -> Iterator[Finding]:
    try:
        workers = describe_dask_workers(address, listen_host)
    except ImportError:
        yield wrong("Dask", "it is not installed here", "pip install 'prefect-executor-adapter[dask]'")
    except OSError as error:
        yield wrong(f"Dask at {address}", str(error), "start it, and install prefect-executor-adapter on its workers")
    else:
        if not workers:
            yield warning(f"Dask at {address}", "it has no workers now", "jobs wait until it has some")
        for node, described in workers.items():
            if described["unreached"]:
                way_out = "set cluster.dask.listen_host to an address of this machine that workers reach"
                yield wrong(f"Dask worker {node}", described["unreached"], way_out)
            else:
                yield _compare(f"Dask worker {node}", node, described)


def _compare(check: str, node: str, described: dict[str, Any]) -> Finding:
    if found := differences(node, described):
        return warning(check, "; ".join(found), _NOT_THE_SAME)
    return fine(check, f"Python {described['python']}, the same versions as here")
