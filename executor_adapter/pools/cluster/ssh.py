"""Leases on hosts that are reached by ssh: the simplest cluster, with no scheduler and nothing that listens.

The agent of a host is started by `ssh HOST python -m ...agent_program`, and the link runs over its stdin and stdout. So
ssh authenticates and encrypts, and its configuration (keys, ports, jumps) applies.
"""

from __future__ import annotations

import heapq
import logging
import os
import socket
import subprocess
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, ClassVar

from executor_adapter.config import ClusterSettings, SshHostSettings, SshSettings
from executor_adapter.job import Shape
from executor_adapter.pools.base import PoolSupervisor
from executor_adapter.pools.cluster import frames
from executor_adapter.pools.cluster.leases import LeaseSource
from executor_adapter.pools.cluster.link import SocketEnd
from executor_adapter.pools.cluster.pool import RemotePool
from executor_adapter.pools.cluster.remote_agent import RemoteAgent

logger = logging.getLogger("executor_adapter.cluster")

FIRST_RETRY, MAX_RETRY = 1.0, 60.0
"""Seconds after which a host that could not be reached is tried again: each further time twice as long."""
_MAX_GREETING = 1 << 16
"""Bytes that the shell of a host may print before the agent starts."""
_MAX_LINES = 20
"""Lines of a host's stderr that are kept for the error."""
_NOT_FOUND = (126, 127)
"""Exit codes of a shell that cannot run the command."""
_SSH_FAILED = 255
_EXIT_MOMENT = 0.5
"""Seconds in which ssh may exit by itself, with the code that says what went wrong."""
_EXIT_TIMEOUT = 2.0
"""Seconds that ssh may take to end after its connection is closed."""
_EXIT_INTERVAL = 0.02
"""Seconds between two looks at whether it has."""


class SshPool(RemotePool):
    """Runs attempts on hosts that are reached by ssh."""

    name: ClassVar[str] = "ssh"

    def __init__(
        self, supervisor: PoolSupervisor, max_workers: int, *, cluster: ClusterSettings, **options: Any
    ) -> None:
        super().__init__(supervisor, max_workers, cluster=cluster, **options)
        self.source = SshHosts(self, cluster.ssh)


class SshHosts(LeaseSource):
    """Grants leases on a fixed list of hosts, evenly; starts the agent of a host when it is needed."""

    keeps_idle = True

    def __init__(self, pool: RemotePool, settings: SshSettings) -> None:
        self._pool = pool
        self._supervisor = pool.supervisor
        self._connections = [_Connection(host, settings.command) for host in settings.hosts]
        self._on_closed: Callable[[], None] | None = None

    # --- leases ---

    def ask(self, leases: Sequence[int]) -> None:
        self._supervisor.call_soon(self._place)

    def look_for_nodes(self, shapes: Collection[Shape]) -> None:
        if shapes and (silent := [each.host.host for each in self._connections if each.process is not None]):
            self._pool.shapes.on_nodes_sought((), (), f"no agent has started yet on {', '.join(silent)}")

    def withdraw(self, lease: int) -> None:
        """Do nothing: it is not among those in the books any more."""

    def release(self, agent: RemoteAgent, lease: int) -> None:
        self._supervisor.call_soon(self._place)

    def _place(self) -> None:
        """Find a slot for each lease that is asked for, on the host with the largest share of free ones.

        It is granted there once the agent is ready. Until then it keeps its slot, since each time all are placed anew,
        in the same order.
        """
        now = self._supervisor.now()
        hosts = enumerate(self._connections)
        free = [(-each.free / each.host.slots, n, each.free) for n, each in hosts if each.free and each.retry_at <= now]
        heapq.heapify(free)
        for lease in list(self._pool.shapes.asked):
            if not free:
                return
            _, n, slots = heapq.heappop(free)
            best = self._connections[n]
            if slots > 1:
                heapq.heappush(free, ((1 - slots) / best.host.slots, n, slots - 1))
            if best.process is None and best.retry_at <= now:
                self._start(best)
            elif best.agent is not None and best.agent.is_ready:
                self._pool.granted(best.agent, lease)

    # --- hosts ---

    def _start(self, connection: _Connection) -> None:
        try:
            sock = connection.start(self._supervisor)
        except OSError as error:  # The system refuses a process, or a descriptor.
            self._on_failure(connection, f"ssh cannot be started: {error}")
        else:
            connection.agent = self._pool.connect(AfterGreeting(sock, connection.note), connection.host.host)

    def on_ready(self, agent: RemoteAgent) -> None:
        connection = self._connection_of(agent)
        connection.failures = 0
        self._place()

    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        connection = self._connection_of(agent)
        connection.agent = None
        self._end(connection, self._supervisor.now(), "" if agent.is_ready else why)

    def _end(self, connection: _Connection, since: float, why: str) -> None:
        """Wait until ssh has exited, and end it if need be. `why`: its connection ended before the agent was ready."""
        process, now = connection.process, self._supervisor.now()
        assert process is not None
        if process.poll() is None:
            if now >= since + _EXIT_TIMEOUT:
                process.kill()
            elif not why or now >= since + _EXIT_MOMENT:
                process.terminate()
            self._supervisor.call_at(now + _EXIT_INTERVAL, lambda: self._end(connection, since, why))
            return
        connection.read(self._supervisor, process.stderr, is_last=True)
        why = why and f"{connection.host.host}: {connection.failure(process, why)}"
        connection.process = None
        self._on_failure(connection, why)
        self._continue_closing()

    def _on_failure(self, connection: _Connection, why: str) -> None:
        """Try the host again later, and meanwhile others; `why` is told where it was never connected."""
        delay = min(FIRST_RETRY * 2 ** min(connection.failures, 6), MAX_RETRY)
        connection.failures += 1
        connection.retry_at = self._supervisor.now() + delay
        if why:
            self._pool.shapes.on_failure((), f"{why}: tried again in {delay:.0f} s")
        self._supervisor.call_soon(self._place)
        self._supervisor.call_at(connection.retry_at, self._place)

    def _connection_of(self, agent: RemoteAgent) -> _Connection:
        return next(each for each in self._connections if each.agent is agent)

    def close(self, on_closed: Callable[[], None]) -> None:
        self._on_closed = on_closed
        self._continue_closing()

    def _continue_closing(self) -> None:
        if self._on_closed is not None and not any(each.process for each in self._connections):
            on_closed, self._on_closed = self._on_closed, None
            on_closed()


class AfterGreeting(SocketEnd):
    """The end of a link that passes over what the host's shell prints before the agent starts, such as a greeting."""

    def __init__(self, sock: socket.socket, on_greeting: Callable[[list[bytes]], None]) -> None:
        super().__init__(sock)
        self._on_greeting = on_greeting
        self._before: bytearray | None = bytearray()
        """What has come before the start; None after it."""

    def receive(self, buffer: bytearray) -> int:
        """Read what comes after the start.

        Raises:
            BlockingIOError: there is nothing of it yet.
        """
        count = super().receive(buffer)
        if self._before is None:
            return count
        self._before += buffer[:count]
        greeting, start, after = self._before.partition(frames.START)
        if not start and count and len(greeting) <= _MAX_GREETING:
            raise BlockingIOError
        self._before = None
        self._on_greeting(bytes(greeting).splitlines())
        if start and not after:
            raise BlockingIOError
        buffer[: len(after)] = after
        return len(after)  # None without a start: the stream has ended, or is not that of an agent.


class _Connection:
    """One host: its ssh process while there is one, and its agent."""

    def __init__(self, host: SshHostSettings, ssh_command: Sequence[str]) -> None:
        self.host = host
        self.agent: RemoteAgent | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.failures = 0
        """Times in a row that the host could not be reached."""
        self.retry_at = 0.0
        self._ssh_command = ssh_command
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)

    @property
    def free(self) -> int:
        """Slots that are not leased."""
        leased = 0 if self.agent is None else self.agent.slots
        return 0 if self.agent is None and self.process else self.host.slots - leased

    def start(self, loop: PoolSupervisor) -> socket.socket:
        """Start ssh, and return our end of its stdin and stdout. What it writes to stderr is noted on the loop.

        Raises:
            OSError: ssh cannot be started.
        """
        self._lines.clear()
        ours, theirs = socket.socketpair()
        fd, command = theirs.fileno(), frames.agent_command(self.host, self._ssh_command)
        with theirs:
            try:
                process = subprocess.Popen(
                    command, bufsize=0, stdin=fd, stdout=fd, stderr=subprocess.PIPE, start_new_session=True
                )
            except BaseException:
                ours.close()
                raise
        self.process, stderr = process, process.stderr
        assert stderr is not None
        os.set_blocking(stderr.fileno(), False)
        loop.watch(stderr.fileno(), lambda: self.read(loop, stderr))
        return ours

    def read(self, loop: PoolSupervisor, stderr: Any, *, is_last: bool = False) -> None:
        """Take note of what ssh has written to stderr. `is_last`: it has exited."""
        if stderr.closed:
            return
        while content := stderr.read():
            self.note(content.splitlines())
        # Without an end, what ssh has started, as for ControlPersist, holds it.
        if content is not None or is_last:
            loop.unwatch(stderr.fileno())
            stderr.close()

    def note(self, lines: Iterable[bytes]) -> None:
        """Take note of what the host has printed."""
        for line in lines:
            if text := line.decode(errors="replace").strip():
                self._lines.append(text)
                logger.info("%s: %s", self.host.host, text)

    def failure(self, process: subprocess.Popen[bytes], why: str) -> str:
        """Return in words why the agent was not ready before its end; `why` its connection ended."""
        said = f": {'; '.join(self._lines)}" if self._lines else ""
        code = process.returncode
        if code == _SSH_FAILED:
            return f"ssh cannot connect{said}"
        if code in _NOT_FOUND:
            return f"{self.host.python!r} cannot be run there: set the host's python{said}"
        return f"{why if code < 0 else f'its agent ended with code {code}'} before it was ready{said}"
