"""Leases on a Dask cluster: each is a small task that holds a slot of a worker, where an agent runs the attempts.

Dask places the leases, counts them, and sees their number as demand, so an adaptive cluster grows and shrinks with it.
No attempt is a task of Dask's. So neither its retries nor its work stealing concern one.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import cloudpickle

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import CPU, GPU, Shape
from executor_adapter.pools.cluster.engines.dask_worker import hold_lease
from executor_adapter.pools.cluster.engines.leases import WATCH_INTERVAL, Amounts, Engine, EnginePool, able_nodes
from executor_adapter.pools.cluster.link import Certificates
from executor_adapter.pools.cluster.node_data import Kept, NodeValue
from executor_adapter.pools.cluster.references import note_kept

ANSWER_TIMEOUT = 2.0
"""Seconds in which a worker must say why an agent on it has ended, and the scheduler what waits there."""


class DaskCluster(Engine):
    """The client of a Dask cluster, and the cluster itself where it is a local one."""

    name = "Dask"

    def __init__(self, *of_engine: Any) -> None:
        super().__init__(*of_engine)
        self._local: Any = None
        self._client: Any = None
        self._futures: dict[int, Any] = {}
        """The tasks that are not done, by the number of their lease."""
        self._keeper: Any = None
        """The client whose futures the kept results are: that of the program, if it has one of this cluster."""

    def connect(self) -> str:
        import distributed  # Only here: programs that do not use it need not have it.

        engine: Any = distributed
        target: Any = self._address or self._local
        if self._client is not None:  # Its scheduler was lost.
            self._client.close(timeout=0)
        if target is None:
            self.is_fixed = True
            # Its workers are threads of this program: they hold leases, and run no code of a job.
            self._local = target = engine.LocalCluster(
                n_workers=1,
                threads_per_worker=self._slots,
                processes=False,
                resources=dict(self._capacity()),
                dashboard_address="127.0.0.1:0",
                scheduler_kwargs={"dashboard": False},
            )
        # A client of the program's own may have been given certificates that Dask's configuration does not name.
        known = None if self._local else _default_client(engine, target)
        security = None if known is None else known.security
        self._client = engine.Client(target, set_as_default=False, name="executor-adapter", security=security)
        self._client.subscribe_topic(f"executor-adapter-relay-{self._token[:8]}", self._relay)
        scheduler = str(self._client.scheduler.address)
        self._keeper = _default_client(engine, scheduler) or self._client
        return scheduler

    def certificates(self) -> Certificates | None:
        if not str(self._client.scheduler.address).startswith("tls:"):
            return None
        certificates: Certificates = self._client.security.get_tls_config_for_role("client")
        return certificates

    def ask(self, head: dict[str, Any], lease: int, needs: Amounts) -> None:
        if self._client is None or self._client.status != "running":
            self.connect()
        head = {**head, "client": self._keeper.id, "tls": self.certificates() is not None}
        self._futures[lease] = self._client.submit(
            hold_lease,
            head,
            lease,
            needs.get(GPU, 0),
            # Each is a group of its own: tasks of a large group wait at the scheduler behind those of others.
            key=(f"{self._name_of_leases}{lease}", 0),
            pure=False,
            retries=0,
            resources=self._counted(needs) or None,
        )

    def _relay(self, event: tuple[float, tuple[str, str]]) -> None:
        """Carry the link of an agent that does not reach this program, through scheduler and worker."""
        worker, link = event[1]

        def call(**message: Any) -> Any:
            message["link"] = link
            return self._client.sync(self._client.scheduler.broadcast, msg=message, workers=[worker])[worker]

        read, write = lambda: call(op="agent_read"), lambda part: call(op="agent_write", part=part)
        self._ends.relay(f"worker {worker}", read, write)

    def poll(self) -> float | None:
        # Dask's callbacks need a pool of threads, which is gone before the jobs of a program that ends.
        for lease, future in list(self._futures.items()):
            if future.done():
                self.note_end(lease, future)
        return WATCH_INTERVAL if self._futures else None

    def _counted(self, needs: Amounts) -> dict[str, float]:
        """Return what Dask counts of a lease. One thread is a processor, where no worker says how many it has."""
        counted = {**(self._resources or {}), **needs}
        if counted.get(CPU, 2) <= 1 and not any(CPU in has for has in self._workers().values()):
            del counted[CPU]
        return counted

    def _workers(self) -> dict[str, Amounts]:
        """Return what each worker has in all, as it was started with `--resources`, by the name of its agent."""
        workers: dict[str, Any] = self._client.scheduler_info()["workers"]
        return {address: worker.get("resources", {}) for address, worker in workers.items()}

    def is_in_line(self, shape: Shape) -> bool:
        # A worker looks at the first of its tasks that need resources alone.
        return bool(self._resources or shape)

    def find_nodes(self, needs: Amounts) -> tuple[list[str], str]:
        counted = self._counted(needs)
        found, lack = able_nodes(counted, self._workers(), "worker")
        if found or not counted or self._local is not None:
            return found, lack
        # Dask reads an amount as a number, and so text such as 4GiB is none.
        amounts = " ".join(f"{name}={amount:.10g}" for name, amount in counted.items())
        return [], f"{lack} (dask worker --resources {amounts!r})"

    def usage(self, leases: Collection[int]) -> tuple[list[str], bool]:
        ours, running = {(f"{self._name_of_leases}{lease}", 0) for lease in leases}, self._running()
        holders = [worker for worker, keys in running.items() if keys & ours]
        return holders, any(keys - ours for keys in running.values())

    def _running(self) -> dict[str, set[Any]]:
        """Return the keys of all tasks that run, by worker."""
        asked = self._client.scheduler.call_stack
        found = self._client.sync(asked, keys=None, callback_timeout=ANSWER_TIMEOUT)
        return {worker: set(keys) for worker, keys in found.items()}

    def others(self) -> dict[str, int]:
        # What is sent by value runs on the same version of Python alone.
        own, theirs = platform.python_version(), self._on_scheduler(platform.python_version)
        if own.split(".")[:2] != theirs.split(".")[:2]:
            raise RuntimeError(f"its scheduler runs Python {theirs}, and this program {own}")
        return dict(self._on_scheduler(_waiting_tasks(), self._name_of_leases))

    def _on_scheduler(self, function: Callable[..., Any], *args: Any) -> Any:
        parts = {"function": function, "args": args, "kwargs": {}}
        encoded = {name: cloudpickle.dumps(part) for name, part in parts.items()}
        asked = self._client.scheduler.run_function
        return self._client.sync(asked, **encoded, callback_timeout=ANSWER_TIMEOUT)["result"]

    def note_end(self, lease: int, future: Any) -> None:
        self._futures.pop(lease, None)
        why = future.exception() if future.status == "error" else ""
        if future.status == "finished":
            with contextlib.suppress(TimeoutError):  # Dask waits without end for what has gone with its worker.
                why = future.result(timeout=ANSWER_TIMEOUT)
        self._ends.lease_ended(lease, why)

    def drop(self, lease: int) -> None:
        future = self._futures.pop(lease, None)
        if future is not None:
            self._client.cancel([future], force=True)

    def release(self, lease: int) -> None:
        """Do nothing: its task ends when the agent hears of it."""

    def open_kept(self, kept: Kept) -> Any:
        import distributed

        make_future: Any = distributed.Future  # Dask's own type of `state` is too narrow.
        note_kept(kept.name, kept.node)
        # Its worker has reported it for this client.
        return make_future(kept.name, self._keeper, state="memory")

    def close(self) -> None:
        if self._client is not None and self._client.status == "running":
            self._wait_for_leases()
            self._client.cancel(list(self._futures.values()), force=True)
        self._futures.clear()
        for each in (self._client, self._local):
            if each is not None:
                each.close()

    def _wait_for_leases(self) -> None:
        """Let the tasks return whose agents have just ended: a worker that closes warns of each that has not."""
        until = time.monotonic() + ANSWER_TIMEOUT
        with contextlib.suppress(OSError):  # A worker does not answer.
            while self._name_of_leases in str(self._running()) and time.monotonic() < until:
                time.sleep(0.02)


def _waiting_tasks() -> Callable[..., dict[str, int]]:
    """Return a function that runs on the scheduler, which may lack this package: cloudpickle writes it by value."""

    def count(ours: str, dask_scheduler: Any = None) -> dict[str, int]:
        """Return how many tasks of others wait, by worker; those that no worker has yet wait for each."""
        import itertools

        found = {}
        for address, worker in dask_scheduler.workers.items():
            is_full = len(worker.processing) - len(worker.long_running) > worker.nthreads
            waiting = [
                task
                for task in itertools.islice(worker.processing, 1000)
                if (is_full or task.resource_restrictions)
                and task not in worker.executing
                and task not in worker.long_running
                and ours not in str(task.key)
            ]
            found[address] = len(waiting) + len(dask_scheduler.queued)
        return found

    return count


def _default_client(engine: Any, scheduler: Any) -> Any:
    """Return the program's own client, if it is connected to this scheduler."""
    try:
        client = engine.default_client()
    except ValueError:  # It has none.
        return None
    return client if client.status == "running" and client.scheduler.address == scheduler else None


class DaskPool(EnginePool):
    """Runs attempts on the workers of a Dask cluster; without an address, on a local one that it starts."""

    name: ClassVar[str] = "dask"

    engine: ClassVar[type[Engine]] = DaskCluster

    reference: ClassVar[tuple[str, str]] = "distributed", "Future"

    @classmethod
    def node_value(cls, module: Any, reference: Any, shown: str) -> NodeValue:
        if reference.status != "finished":
            raise InvalidJobError(
                f"{shown} is a Dask future that is {reference.status}, not finished: wait for it first "
                "(distributed.wait)"
            )
        return NodeValue(reference.key, f"{shown}, the Dask future {reference.key},")
