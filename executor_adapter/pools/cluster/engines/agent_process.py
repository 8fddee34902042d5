"""What the process of an engine on a node holds for a program: the agent's process, and the data of its workers."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

from executor_adapter.exceptions.display import text_of
from executor_adapter.pools.cluster import agent_program
from executor_adapter.pools.cluster.handshake import serve_connections
from executor_adapter.pools.cluster.node_data import FETCH, VARIABLE, Kept, receive, send
from executor_adapter.worker.interpreter import interpreter_command

_CREDENTIALS = struct.Struct("3i")
"""What SO_PEERCRED returns: pid, uid and gid."""


class DataStore(Protocol):
    """Reaches the values of an engine from its process on a node. Its methods may block, and are called in threads."""

    def fetch(self, name: Any) -> Any:
        """Return a value.

        Raises:
            Exception: it is not there.
        """

    def keep(self, name: str, value: Any) -> Kept:
        """Take a value; the name is new."""


class DataServer:
    """Listens at a socket of this machine, to which only processes of the same user may connect."""

    def __init__(self, store: DataStore) -> None:
        self.address = f"executor-adapter-{secrets.token_hex(16)}"
        """The name of its socket: one without a file, which is gone with this process."""
        self._store = store
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind("\0" + self.address)
        self._socket.listen(128)
        serve_connections(self._socket, self._serve, "executor-adapter-data")

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):  # Its job has ended.
            _, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
            if uid != os.getuid():
                return
            failed = "the result cannot be kept on the cluster"
            try:
                (what, about), value = receive(sock)
                if what == FETCH:
                    failed = f"{about[1]} cannot be fetched"
                    send(sock, (True, ""), self._store.fetch(about[0]))
                else:
                    with contextlib.suppress(BlockingIOError):
                        if not sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                            return  # Its worker was killed meanwhile: nobody would free what is kept.
                    job_id, number = about
                    kept = self._store.keep(f"executor-adapter-{job_id}-{number}-{secrets.token_hex(4)}", value)
                    # Not as a value: that would be loaded to check it, which in the program itself makes a reference.
                    send(sock, (True, (kept.head, kept.name, kept.node)), None)
            except Exception as error:
                send(sock, (False, f"{failed}: {text_of(error)}"), None)


class AgentProcess:
    """An agent's process: it is told which leases are held here, and says which are given back.

    `head`: the address at which the head listens, its token, and the seconds that it waits for a lost node. `node`:
    what the agent calls itself. `store`: where its workers find the engine's data. In another thread,
    `report(agent, None)` is called where the agent cannot connect to its head, whose stream is that of `link` then, and
    `report(agent, why)` when the process has `ended`.
    """

    def __init__(
        self, head: dict[str, Any], node: str, store: DataStore, report: Callable[[AgentProcess, str | None], object]
    ) -> None:
        self._lock = threading.Lock()
        self._released: dict[int, threading.Event] = {}
        self.ended: str | None = None
        """Why it takes no further lease; "" where it was told to end; None while it takes some."""
        self._is_connected = self._is_leaving = False
        self._head, self._report = head, report
        self.link, theirs = socket.socketpair()
        self._words, its_words = socket.socketpair()
        self._data = DataServer(store)
        path = [os.path.abspath(entry) for entry in sys.path]
        with theirs, its_words:
            try:
                self._process = subprocess.Popen(
                    interpreter_command(agent_program.BOOTSTRAP),
                    stdin=its_words.fileno(),
                    stdout=2,  # What its Python prints goes to stderr, too.
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, VARIABLE: self._data.address},
                )
            except BaseException:  # The system may refuse another process, now.
                for each in (self.link, self._words, self._data):
                    each.close()
                raise
            self._tell({**head, "node": node, "path": path, "relay": theirs.fileno()})
        threading.Thread(target=self._listen, name="executor-adapter-agent", daemon=True).start()

    def hold(self, lease: int, environment: dict[str, str] | None = None) -> threading.Event:
        """Tell the agent of a lease. The event is set when it is given back, or the agent has ended.

        `environment`: variables of the environment of the attempts that run on it.
        """
        event = self._released[lease] = threading.Event()
        with self._lock:
            if self.ended is not None:
                event.set()
            else:
                self._tell({"lease": lease, "environment": environment or {}})
        return event

    def leave(self) -> None:
        """Tell the agent that the engine's process is about to leave."""
        with self._lock:
            if not self._is_leaving and self.ended is None:
                self._is_leaving = True
                self._tell({"leaving": True})

    def kill(self) -> None:
        """Kill the agent, if it lives."""
        self._process.kill()

    def end_if_stuck(self, lease: int) -> None:
        """Kill the agent if it does not answer for as long as a lost node is waited for: a signal has stopped it.

        While other leases wait for it, that time begins when it is connected. `lease`: one that has ended.
        """
        was_connected = self._is_connected
        answers = self.hold(-lease).wait(self._head["lost_after"])
        if not answers and (was_connected or not self._released.keys() - {lease, -lease}):
            self._process.kill()

    def why_ended(self, lease: int) -> str:
        """Forget a lease that has ended; return what was wrong with the agent, "" if nothing was."""
        return "" if self._released.pop(lease, None) is None else self.ended or ""

    def _tell(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # It has ended, which `_listen` notices.
            self._words.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        why: str | None = None
        with self._words, contextlib.suppress(ConnectionError):  # It has ended before it had read everything.
            for line in self._words.makefile("rb"):
                message = json.loads(line)
                why = message.get("failed", why)
                self._is_connected |= "connected" in message
                if message.get("relay"):
                    self._report(self, None)
                elif "relay" in message:
                    self.link.close()
                if (event := self._released.pop(message.get("released", 0), None)) is not None:
                    event.set()
        self._data.close()
        with self._lock:
            code = self._process.wait()
            self.ended = f"the agent ended with code {code}, and does not say why" if why is None else why
        self._report(self, self.ended)
        for event in list(self._released.values()):
            event.set()
