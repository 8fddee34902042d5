"""The checks of `doctor`, except those of Prefect. Each check tries the real operation where possible."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from executor_adapter.cli.stores import file_of
from executor_adapter.config import ClusterSettings, Settings, SshHostSettings, read_sources
from executor_adapter.exceptions import ConfigurationError, InvalidJobError, JobSerializationError
from executor_adapter.executor import JobExecutor, slot_limits
from executor_adapter.job import HAS_GUARDIAN, Job, is_coroutine_function, resolve
from executor_adapter.monitoring import Finding, fine, warning, wrong
from executor_adapter.pools.cluster.descriptions import EngineName, ask_nodes, compare_node, describe_ssh_host
from executor_adapter.pools.memory.available import AvailableMemory
from executor_adapter.pools.selection import check_job
from executor_adapter.store import StoreUnavailableError, open_store

FILES_PER_WORKER = 8
"""File descriptors that the host holds for each worker process: socket, output, pidfd, and what it sends."""
FILES_OF_PROGRAM = 128
"""File descriptors that the program itself may need."""
WITHOUT_GUARDIAN = "memory_limit is refused, and a process that left its worker's group is not found"
"""The limitations of a process pool without a guardian."""
TRIAL_TIMEOUT = 20.0
"""Seconds that a trial job gets."""


def core_checks(config_file: Path | None, store: str | None, function: str | None) -> Iterator[Finding]:
    """Run all checks except those of Prefect; checks that others depend on come first."""
    yield check_system()
    found, settings = check_configuration(config_file)
    yield found
    workers = slot_limits(settings.executor.max_workers).of("process")
    yield check_open_files(workers)
    yield check_processes(workers)
    yield check_memory(settings.executor.memory)
    if HAS_GUARDIAN and settings.executor.start_method == "spawn":
        yield warning("start method", f"spawn: {WITHOUT_GUARDIAN}", "remove executor.start_method to use a guardian")
    with project_modules(config_file):
        yield check_process_pool(settings)
        yield check_store(store or settings.store.url)
        yield from check_cluster(settings.cluster)
        if function is not None:
            yield check_function(function)


def check_system() -> Finding:
    """Check for what the guardian needs: Linux 5.4 or newer."""
    name = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    if not HAS_GUARDIAN:
        way_out = f"process jobs run in spawned interpreters: {WITHOUT_GUARDIAN}"
        return warning("system", f"{name}: no pidfd, eventfd or memfd", way_out)
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        way_out = "use Linux 5.4 or newer, or set executor.start_method: spawn"
        return wrong("system", f"{name}: no pidfd ({error})", way_out)
    return fine("system", f"{name}, pidfd")


def check_configuration(config_file: Path | None) -> tuple[Finding, Settings]:
    """Check the configuration, and return its settings, or the defaults where it is wrong."""
    try:
        sources = read_sources(config_file)
        return fine("configuration", sources.description), sources.settings()
    except ConfigurationError as error:
        return wrong("configuration", str(error), "nothing starts until it is valid"), Settings.model_construct()


def check_open_files(max_workers: int) -> Finding:
    """Check the limit of open files against the number of workers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OF_PROGRAM + FILES_PER_WORKER * max_workers
    if soft != resource.RLIM_INFINITY and soft < needed:
        way_out = f"raise the limit (ulimit -n {needed}), or lower executor.max_workers"
        return wrong("open files", f"at most {soft}: {max_workers} workers need about {needed}", way_out)
    return fine("open files", f"at most {soft}")


def check_processes(max_workers: int) -> Finding:
    """Check the limit of processes against the number of workers."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and soft < 64 + 4 * max_workers:
        return wrong("processes", f"at most {soft} of this user", "raise the limit: ulimit -u 4096")
    return fine("processes", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft} of this user")


def check_memory(size: int | Literal["auto"] | None) -> Finding:
    """Check how much memory is left for jobs, where it is scarcest."""
    if size is None:
        way_out = "one job may take all memory, and the program with it: remove executor.memory: null"
        return warning("memory", "not watched", way_out)
    level = AvailableMemory(size).read()
    if level is None:
        return fine("memory", "not measured here: it needs Linux")
    if level.is_high:
        way_out = "no further attempt starts while one runs: end other programs, or allow more memory"
        return warning("memory", str(level), way_out)
    return fine("memory", str(level))


def check_process_pool(settings: Settings) -> Finding:
    """Check that a worker starts, runs a function, and is gone when a job exceeds its time limit."""
    began = time.monotonic()
    with JobExecutor(1, config=settings) as executor:
        try:
            executor.submit(_trial(os.getpid)).result(TRIAL_TIMEOUT)
            started = time.monotonic() - began
            late = executor.submit(_trial(time.sleep, 60, max_runtime=0.2))
            late.exception(TRIAL_TIMEOUT)
        except Exception as error:
            executor.shutdown(timeout=0)
            way_out = "pool='process' does not work here: see the log"
            return wrong("process pool", f"{type(error).__name__}: {error}", way_out)
    if late.job.error_code != "TIMEOUT_ERROR":
        found = f"a job that exceeded its limit ended as {late.job.error_code}"
        return wrong("process pool", found, "report this as a bug")
    overdue = max(0.0, late.job.attempts[0].run_seconds - 0.2)
    return fine(
        "process pool", f"first job after {started:.2f} s; a job past its limit was dead {overdue * 1000:.0f} ms later"
    )


def _trial(function: Callable[..., object], *args: object, **fields: object) -> Job:
    given: dict[str, Any] = {"max_runtime": TRIAL_TIMEOUT, "retry_attempts": 0, "memory_limit": None, **fields}
    return Job(function=function, args=args, pool="process", **given)


def check_store(url: str | None) -> Finding:
    """Check that the store can be opened and answers, without creating its file."""
    if url is None:
        way_out = "jobs are lost when their program ends: set store.url, for example sqlite:///jobs.db"
        return warning("store", "none: jobs are kept in memory", way_out)
    file = file_of(url)
    if file is not None and not file.exists():
        return _check_directory(file.parent, url)
    try:
        found = open_store(url)
    except (ConfigurationError, StoreUnavailableError) as error:
        return wrong("store", str(error), "start it, or set store.url to another")
    try:
        began = time.monotonic()
        jobs = sum(found.counts().values())
        return fine("store", f"{found.url}: {jobs:,} jobs, answers in {(time.monotonic() - began) * 1000:.0f} ms")
    except StoreUnavailableError as error:
        return wrong("store", str(error), "start it, or set store.url to another")
    finally:
        found.close()


def _check_directory(directory: Path, url: str) -> Finding:
    try:
        with tempfile.TemporaryFile(dir=directory):
            return fine("store", f"{url}: the first program that stores jobs will create it")
    except OSError as error:
        way_out = "create the directory, or set store.url to another"
        return wrong("store", f"cannot create {url}: {directory}: {error.strerror}", way_out)


@contextlib.contextmanager
def project_modules(config_file: Path | None) -> Iterator[None]:
    """Let modules of the current directory and of the configuration's folder be imported.

    They come last: no file there runs in place of what is installed.
    """
    folders = list[str]()
    for file in dict.fromkeys((Path("config.yaml"), config_file or Path("config.yaml"))):
        with contextlib.suppress(FileNotFoundError):  # The current directory is gone.
            folders.append(str(file.absolute().parent))
    sys.path += folders
    try:
        yield
    finally:
        for folder in folders:  # PYTHONPATH may have one before it.
            del sys.path[-1 - sys.path[::-1].index(folder)]


def check_function(reference: str) -> Finding:
    """Check that a function can be imported and sent to a worker."""
    check = f"function {reference}"
    try:
        found = resolve(reference)
        if not is_coroutine_function(found):
            check_job(Job(function=found, pool="process"))
    except (InvalidJobError, JobSerializationError) as error:
        return wrong(check, str(error), "define it at the top of a module that workers can import")
    if is_coroutine_function(found):
        return fine(check, "a coroutine function: pool='auto' runs it on an event loop")
    return fine(check, "can be sent to a worker")


# --- other machines: each node is asked what it is ---

_INSTALL = "install prefect-executor-adapter on its nodes"


def check_cluster(settings: ClusterSettings) -> Iterator[Finding]:
    """Check the hosts of `pool: ssh`, and the nodes of a Dask and of a Ray cluster that has an address."""
    for host in settings.ssh.hosts:
        yield _check_ssh_host(host, settings.ssh.command)
    if settings.dask.address is not None:
        yield from _check_engine("dask", settings.dask.address, settings)
    if (ray := settings.ray.address or os.environ.get("RAY_ADDRESS")) is not None:
        yield from _check_engine("ray", ray, settings)


def _check_ssh_host(host: SshHostSettings, command: tuple[str, ...]) -> Finding:
    name = f"ssh host {host.host}"
    try:
        return _compare(name, host.host, describe_ssh_host(host, command))
    except OSError as error:
        way_out = f"try it by hand: ssh {host.host} {host.python} --version"
        return wrong(name, str(error), f"no job runs there: {way_out}")


def _check_engine(engine: EngineName, address: str, settings: ClusterSettings) -> Iterator[Finding]:
    name = f"{engine.title()} at {address}"
    try:
        answers = ask_nodes(engine, address, settings)
    except ImportError:
        yield wrong(name, f"{engine} is not installed here", f"pip install 'prefect-executor-adapter[{engine}]'")
    except OSError as error:
        yield wrong(name, str(error), f"start it, and {_INSTALL}")
    else:
        if not answers:
            yield warning(name, "it has no nodes now", "jobs wait until it has some")
        for node, answer in answers.items():
            yield _check_node(f"{engine.title()} node {node}", node, answer)


def _check_node(name: str, node: str, answer: dict[str, Any] | str) -> Finding:
    return wrong(name, answer, _INSTALL) if isinstance(answer, str) else _compare(name, node, answer)


def _compare(check: str, node: str, described: dict[str, Any]) -> Finding:
    shown, found = compare_node(node, described)
    if found:
        return warning(check, "; ".join([*found, shown]), "jobs may fail there, or be slow: make them the same")
    return fine(check, shown)
