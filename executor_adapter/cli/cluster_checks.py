"""The checks of `doctor` on other machines: each node is asked what it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from executor_adapter.config import ClusterSettings
from executor_adapter.monitoring import Finding, fine, warning, wrong
from executor_adapter.pools import EngineName, NodeAnswer, SshHost, ask_nodes, describe_ssh_host, differences

_INSTALL = "install prefect-executor-adapter on its nodes"
_NOT_THE_SAME = "functions and values may fail there: install the same versions"


def check_cluster(settings: ClusterSettings) -> Iterator[Finding]:
    """Check the hosts of `pool: ssh`, and the nodes of a Dask and of a Ray cluster that has an address."""
    for host in settings.ssh.hosts:
        yield _check_ssh_host(SshHost(**host.model_dump()), settings.ssh.command)
    if settings.dask.address is not None:
        yield from _check_engine("dask", settings.dask.address, settings.dask.listen_host)
    if (ray := settings.ray.address or os.environ.get("RAY_ADDRESS")) is not None:
        yield from _check_engine("ray", ray, settings.ray.listen_host)


def _check_ssh_host(host: SshHost, command: tuple[str, ...]) -> Finding:
    name = f"ssh host {host.host}"
    try:
        return _compare(name, host.host, describe_ssh_host(host, command))
    except OSError as error:
        way_out = f"try it by hand: ssh {host.host} {host.python} --version"
        return wrong(name, str(error), f"no job runs there: {way_out}")


def _check_engine(engine: EngineName, address: str, listen_host: str | None) -> Iterator[Finding]:
    name = f"{engine.title()} at {address}"
    try:
        answers = ask_nodes(engine, address, listen_host)
    except ImportError:
        yield wrong(name, f"{engine} is not installed here", f"pip install 'prefect-executor-adapter[{engine}]'")
    except OSError as error:
        yield wrong(name, str(error), f"start it, and {_INSTALL}")
    else:
        if not answers:
            yield warning(name, "it has no nodes now", "jobs wait until it has some")
        for node, answer in answers.items():
            yield _check_node(f"{engine.title()} node {node}", node, answer, f"cluster.{engine}.listen_host")


def _check_node(name: str, node: str, answer: NodeAnswer, listen_host: str) -> Finding:
    if answer.described is None:
        return wrong(name, answer.error, _INSTALL)
    if answer.unreached:
        return wrong(name, answer.unreached, f"set {listen_host} to an address of this machine that nodes reach")
    return _compare(name, node, answer.described)


def _compare(check: str, node: str, described: dict[str, Any]) -> Finding:
    if found := differences(node, described):
        return warning(check, "; ".join(found), _NOT_THE_SAME)
    return fine(check, f"Python {described['python']}, the same versions as here")
