"""Leases of an engine that places them on its nodes, where they start agents that connect to this program.

The client of an engine may block, so it is used in a thread of its own: commands go to it through a queue, and what it
finds comes back by `call_soon`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import secrets
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

from executor_adapter.config import ClusterSettings, DaskSettings, RaySettings
from executor_adapter.exceptions.display import repr_of, text_of
from executor_adapter.job import UNITS, Job, Shape, amount_text, units_of
from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.cluster.handshake import TOKEN_SIZE, Door, advertised, host_towards, ports_of, relay
from executor_adapter.pools.cluster.leases import LeaseSource
from executor_adapter.pools.cluster.link import Certificates, end_of, tls_context
from executor_adapter.pools.cluster.node_data import Kept, NodeValue, heads
from executor_adapter.pools.cluster.pool import RemotePool
from executor_adapter.pools.cluster.references import imported_engine, kept_on, remote_payload, replace_references
from executor_adapter.pools.cluster.remote_agent import RemoteAgent
from executor_adapter.pools.transport.envelope import Body
from executor_adapter.pools.transport.payload import Payload

logger = logging.getLogger("executor_adapter.cluster")

WATCH_INTERVAL = 0.5
"""Seconds between two looks at what the engine runs; its agents report by themselves what matters for jobs."""

RETRY_SECONDS = 1.0
"""Seconds after which a lease that a node could not hold is asked for again."""

Amounts = Mapping[str, float]
"""Amounts by name, with memory in bytes."""


class Engine(ABC):
    """The client of one engine. All methods are called in the thread that is its own, and may block.

    Without an address in its settings, the cluster is a local one, with so many `slots` and what `capacity` returns.
    """

    name: str
    """What users call it."""

    def __init__(
        self,
        ends: EngineLeases,
        settings: DaskSettings | RaySettings,
        slots: int,
        capacity: Callable[[], Mapping[str, float]],
        token: str,
    ) -> None:
        self._ends = ends
        self._token = token
        """The name under which nodes know this program."""
        self._name_of_leases = f"executor-adapter-lease-{token[:8]}-"
        self._address, self._resources = settings.address, settings.resources
        self._slots = slots
        self._capacity = capacity

    @abstractmethod
    def connect(self) -> str:
        """Connect to the cluster, or start a local one. Return the address of its scheduler: host and port.

        Raises:
            Exception: it cannot be reached.
        """

    is_fixed = False
    """Whether no node will join the cluster."""

    def certificates(self) -> Certificates | None:
        """Return the certificates with which this program listens for agents; None where the cluster uses no TLS."""
        return None

    @abstractmethod
    def ask(self, head: dict[str, Any], lease: int, needs: Amounts) -> None:
        """Let an agent on some node hold a lease.

        `head`: the address at which this program listens, its token, and the seconds that it waits for a lost node;
        always the same. `needs`: what the lease takes of its node, in place of the amounts that plain leases take.

        Raises:
            Exception: nothing can be asked for now.
        """

    @abstractmethod
    def find_nodes(self, needs: Amounts) -> tuple[list[str], str]:
        """Return the names of the agents of the nodes that could hold such a lease; in words, why there is none.

        Both are empty where that is not known now.
        """

    @abstractmethod
    def usage(self, leases: Collection[int]) -> tuple[list[str], bool]:
        """Return the nodes that hold one of these leases, and whether others use what would hold one.

        Raises:
            Exception: the engine does not say so now.
        """

    @abstractmethod
    def others(self) -> dict[str, int]:
        """Return for how many slots others wait on each node, by the name of its agent.

        Raises:
            Exception: the engine does not say so now.
        """

    @abstractmethod
    def drop(self, lease: int) -> None:
        """Give a lease back, held or not; nothing where it is not known any more."""

    def is_in_line(self, shape: Shape) -> bool:
        """Return whether a lease of this shape that a node has no room for holds up later ones of other shapes."""
        return False

    def release(self, lease: int) -> None:
        """Give a lease back whose agent knows of it too."""
        self.drop(lease)

    def poll(self) -> float | None:
        """Look what has become of the leases. Return the seconds until it is to be called again; None for no need.

        Called only where no command waits.
        """
        return None

    def lend(self, node: str, attempt: int, references: tuple[Any, ...]) -> None:  # noqa: B027
        """Give the references of an attempt to the engine's process on the node of this name; none: it is over."""

    @abstractmethod
    def open_kept(self, kept: Kept) -> Any:
        """Return the engine's reference to a result that stays on a node. In any thread."""

    def on_agent_lost(self, node: str) -> None:  # noqa: B027
        """Take note that the agent of this name is gone."""

    @abstractmethod
    def close(self) -> None:
        """Give all leases back, and end what was started here."""


def last_line(error: BaseException) -> str:
    """Return the class of an error and the last line of its text: what is before it in Ray's errors are its frames."""
    lines = [line for line in text_of(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"


def amounts_of(shape: Shape) -> dict[str, float]:
    """Return the amounts of a shape; whole ones are whole numbers."""
    return {name: units // UNITS if units % UNITS == 0 else units / UNITS for name, units in shape}


def able_nodes(needs: Amounts, nodes: Mapping[str, Amounts], called: str) -> tuple[list[str], str]:
    """Return the names of the nodes that could hold so much if nothing else ran there; in words, why there is none.

    `nodes`: what each has in all. `called`: what the engine calls one.
    """
    found = [node for node, has in nodes.items() if all(has.get(name, 0) >= amount for name, amount in needs.items())]
    if found or not nodes:
        return found, "" if found else f"the cluster has no {called}"
    for name, amount in needs.items():
        most = max(has.get(name, 0) for has in nodes.values())
        if most < amount:
            has = f"the most that one has is {amount_text(name, units_of(most))}" if most else f"none has {name}"
            return [], f"no {called} has {amount_text(name, units_of(amount))}: {has}"
    together = ", ".join(amount_text(name, units_of(each)) for name, each in needs.items())
    return [], f"no {called} has {together} together"


class EngineLeases(LeaseSource):
    """Asks an engine for leases, and listens for the agents that it starts.

    `capacity`: returns what a local cluster has. `at_exit`: what is registered to end the executors of the program.
    """

    def __init__(
        self,
        pool: EnginePool,
        cluster: ClusterSettings,
        capacity: Callable[[], Mapping[str, float]],
        at_exit: Callable[[], object],
    ) -> None:
        self._pool, self._shapes = pool, pool.shapes
        self._supervisor = pool.supervisor
        self._token = secrets.token_hex(TOKEN_SIZE)
        settings = getattr(cluster, pool.name)
        self._engine = pool.engine(self, settings, pool.max_workers, capacity, self._token)
        heads[self._token] = self._engine.open_kept
        self._cluster, self._at_exit = cluster, at_exit
        self._door: Door | None = None
        self._commands: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._is_connecting = False
        self._looks = 0
        """Looks at the leases that were not granted yet, since the last one that was."""
        self._refusals = set[type[Exception]]()
        """Why the engine does not say what others wait for, each reason once, until it says so again."""
        threading.Thread(target=self._run, name=f"executor-{self._engine.name}", daemon=True).start()

    # --- leases ---

    def ask(self, leases: Sequence[int]) -> None:
        if self._door is None and not self._is_connecting:
            self._is_connecting = True
            self._commands.put(self._connect)
        for lease in leases:
            self._ask(lease)

    def look_for_nodes(self, shapes: Collection[Shape]) -> None:
        if self._door is not None:
            self._let_others_pass()
            leases = list(self._shapes.asked)
            self._commands.put(lambda: self._look_at_nodes(shapes, leases))
        elif () in shapes:
            self._shapes.on_nodes_sought((), (), f"the {self._engine.name} cluster has not answered yet")

    def look_for_others(self) -> None:
        self._commands.put(self._look_for_others)

    def withdraw(self, lease: int) -> None:
        self._commands.put(lambda: self._engine.drop(lease))

    def on_granted(self) -> None:
        self._looks = 0

    def release(self, agent: RemoteAgent, lease: int) -> None:
        self._commands.put(lambda: self._engine.release(lease))

    def lend(self, agent: RemoteAgent, attempt: int, references: tuple[Any, ...]) -> None:
        self._commands.put(lambda: self._engine.lend(agent.node, attempt, references))

    def on_kept(self, body: Body) -> None:
        self._commands.put(body.exception)  # It opens it before the engine's thread hears that the agent is gone.

    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        if not agent.is_closing:  # Otherwise it was asked to end, and its leases end with it.
            for lease in agent.leases:
                self.withdraw(lease.number)
        self._commands.put(lambda: self._engine.on_agent_lost(agent.node))

    # --- the cluster ---

    def _on_unreachable(self, why: str) -> None:
        self._is_connecting = False
        self._shapes.refuse_all(f"the {self._engine.name} cluster cannot be reached: {why}")

    def _on_connected(self, scheduler: str, context: ssl.SSLContext | None) -> None:
        self._is_connecting = False
        if self._pool.is_closing:
            return
        host = getattr(self._cluster, self._pool.name).listen_host
        try:
            host = host or host_towards(scheduler)
            call_soon, ports = self._supervisor.call_soon, ports_of(self._cluster.listen_port)
            token = bytes.fromhex(self._token)
            self._door = Door(call_soon, host, token, lambda it: self._pool.connect(end_of(it)), context, ports)
        except (OSError, ValueError) as error:  # A ValueError: no name of a host looks like that.
            keys = f"cluster.{self._pool.name}.listen_host or cluster.listen_port"
            self._shapes.refuse_all(f"cannot listen for agents on {host or scheduler}: {text_of(error)}: set {keys}")
            return
        for lease in self._shapes.asked:
            self._ask(lease)

    def _let_others_pass(self) -> None:
        """Ask anew for the leases of the shape that waits longest, so that they come after those of other shapes.

        Since the last grant each time comes twice as late: what is asked for anew is lost to a node that has it, and is
        still starting its agent.
        """
        looks, self._looks = self._looks, self._looks + 1
        if looks < 2 or looks & (looks - 1):
            return
        in_line = [shape for shape in dict.fromkeys(self._shapes.asked.values()) if self._engine.is_in_line(shape)]
        if len(in_line) > 1:
            self._shapes.ask_anew(in_line[0])

    def _ask(self, lease: int) -> None:
        if self._door is None or lease not in self._shapes.asked or self._pool.is_closing:
            return
        address, lost_after = advertised(self._cluster.advertise, *self._door.address), self._cluster.lost_after
        head = {"address": address, "token": self._token, "lost_after": lost_after}
        needs = amounts_of(self._shapes.asked[lease])
        self._commands.put(lambda: self._try_to_ask(head, lease, needs))

    def relay(self, node: str, read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
        """Carry the link of an agent that does not reach this program by calls of the engine; `node`: where it is."""
        logger.warning("%s does not reach this program: its link goes through the %s cluster", node, self._engine.name)
        assert self._door is not None
        relay(self._door.address, read, write)

    def lease_ended(self, lease: int, why: str | BaseException) -> None:
        """Take note that nothing holds a lease any more. Any thread may call it.

        `why`: "" if nothing was wrong; an exception if its agent could not be started. Where the nodes lack this
        package, no further try can help.
        """
        is_final = False
        if not isinstance(why, str):
            shown = f"{type(why).__name__}: {text_of(why)}"
            is_final = "ModuleNotFoundError" in shown or "ImportError" in shown
            why = last_line(why) + (": install prefect-executor-adapter on the nodes" if is_final else "")
        self._supervisor.call_soon(self._on_lease_ended, lease, why, is_final)

    def _on_lease_ended(self, lease: int, why: str, is_final: bool) -> None:
        """Ask again for a lease that no agent has reported, at once if that was just about to end."""
        if lease not in self._shapes.asked or self._pool.is_closing:
            return
        if is_final:
            self._shapes.refuse_all(why)
            return
        if not why:
            self._ask(lease)
            return
        self._shapes.on_failure(self._shapes.asked[lease], f"the {self._engine.name} cluster runs no jobs now: {why}")
        self._supervisor.call_at(self._supervisor.now() + RETRY_SECONDS, lambda: self._ask(lease))

    def close(self, on_closed: Callable[[], None]) -> None:
        if self._door is not None:
            self._door.close()
        self._commands.put(lambda: self._close_engine(on_closed))
        self._commands.put(None)

    # --- the engine's thread ---

    def _run(self) -> None:
        wait: float | None = None
        while True:
            try:
                # The engine is looked at once for all that is asked of it now, and in between however much that is.
                for _ in range(max(1, self._commands.qsize())):
                    with contextlib.suppress(Empty):
                        if (command := self._commands.get(timeout=wait)) is None:
                            return
                        command()
                wait = self._engine.poll()
            except Exception:
                logger.exception("a command to the %s cluster failed", self._engine.name)
            command = None  # It may hold a future, whose result Dask keeps for as long, and the worker with it.

    def _connect(self) -> None:
        try:
            scheduler = self._engine.connect()
            # The engine was imported now, and what is registered last is called first: executors end before it does.
            atexit.unregister(self._at_exit)
            atexit.register(self._at_exit)
            certificates = self._engine.certificates()
            context = None if certificates is None else tls_context(certificates, listens=True)
        except Exception as error:
            self._supervisor.call_soon(self._on_unreachable, text_of(error) or repr_of(error))
        else:
            self._supervisor.call_soon(self._on_connected, scheduler, context)

    def _look_at_nodes(self, shapes: Collection[Shape], leases: list[int]) -> None:
        for shape in shapes:
            nodes, why = self._engine.find_nodes(amounts_of(shape))
            if nodes and not shape:
                why = self._why_none(nodes, leases)
            self._supervisor.call_soon(self._shapes.on_nodes_sought, shape, nodes, why, self._engine.is_fixed)

    def _why_none(self, nodes: list[str], leases: list[int]) -> str:
        """Return in words why no agent has any of these leases, though there are nodes that could hold one."""
        why = f"{len(nodes)} could have it, and none gives it"
        try:
            holders, others_use = self._engine.usage(leases)
        except Exception as error:
            logger.debug("the %s cluster does not say who uses it: %s", self._engine.name, text_of(error))
            return why
        if holders:  # How long it takes to start one, nobody knows.
            return f"no agent on {', '.join(holders)} has connected to this program yet"
        return why + (": others use all" if others_use else "")

    def _look_for_others(self) -> None:
        waiting, took, began = dict[str, int](), math.inf, time.monotonic()
        try:
            waiting = self._engine.others()
            took, self._refusals = time.monotonic() - began, set()
        except Exception as error:
            if type(error) not in self._refusals:
                logger.warning("the %s cluster does not say who waits: %s", self._engine.name, repr_of(error))
            self._refusals.add(type(error))
        self._supervisor.call_soon(self._pool.others_wait, waiting, took)

    def _try_to_ask(self, head: dict[str, Any], lease: int, needs: Amounts) -> None:
        try:
            self._engine.ask(head, lease, needs)
        except Exception as error:
            self.lease_ended(lease, f"no lease can be asked for: {text_of(error)}")

    def _close_engine(self, on_closed: Callable[[], None]) -> None:
        heads.pop(self._token, None)
        try:
            self._engine.close()
        finally:
            self._supervisor.call_soon(on_closed)


class EnginePool(RemotePool):
    """Runs attempts on the nodes of an engine's cluster; without an address, on a local one that it starts."""

    engine: ClassVar[type[Engine]]
    reference: ClassVar[tuple[str, str]]
    """The module and the class of the engine's references to data."""
    lends: ClassVar[bool] = False
    """Whether the engine's process on a node needs the references themselves."""

    @classmethod
    def prepare(cls, job: Job) -> Payload:
        module = imported_engine(cls.reference[0]) if job.args or job.kwargs else None
        if module is None:
            return remote_payload(job)
        found: list[Any] = []
        nodes: list[str | None] = []

        def replace(reference: Any, shown: str) -> NodeValue:
            value = cls.node_value(module, reference, shown)
            found.append(reference)
            nodes.append(kept_on.get(value.name))
            return value

        arguments = replace_references(job, getattr(module, cls.reference[1]), replace)
        return remote_payload(job, arguments, next(filter(None, nodes), None), tuple(found) if cls.lends else ())

    @classmethod
    @abstractmethod
    def node_value(cls, module: Any, reference: Any, shown: str) -> NodeValue:
        """Return what is sent in place of a reference; `shown` says which argument it is.

        Raises:
            InvalidJobError: its data is not there yet.
        """

    def __init__(
        self,
        supervisor: PoolSupervisor,
        max_workers: int,
        *,
        cluster: ClusterSettings,
        capacity: Callable[[], Mapping[str, float]],
        at_exit: Callable[[], object],
        **options: Any,
    ) -> None:
        super().__init__(supervisor, max_workers, cluster=cluster, **options)
        self.source = EngineLeases(self, cluster, capacity, at_exit)
