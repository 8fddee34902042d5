"""What a worker says to the process of the engine on its node, which holds the data of the cluster.

An argument that the engine holds is fetched from there, and a result that is to stay on the cluster is put there.
Values travel in memory files between the two processes, and so neither through the agent nor through the program.

Workers import this module, so it needs nothing but `executor_adapter.worker`.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import socket
from collections.abc import Callable
from typing import Any

from executor_adapter.exceptions import JobSerializationError
from executor_adapter.worker import values, wire

VARIABLE = "EXECUTOR_ADAPTER_NODE_DATA"
"""Names the socket of the engine's process in the environment of an agent and of its workers."""

FETCH, KEEP = "fetch", "keep"


class NodeValue:
    """Stands for an argument that the engine holds. It is unpickled as that value.

    `name`: what the engine calls it.
    """

    def __init__(self, name: Any, shown: str) -> None:
        self.name = name
        self.shown = shown

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return fetch, (self.name, self.shown)


class Kept:
    """Stands for a result that stays on the cluster. In the program of `head` it is unpickled as the engine's own.

    `name`: what the engine calls it. `node`: where it is.
    """

    def __init__(self, head: str, name: Any, node: str) -> None:
        self.head = head
        self.name = name
        self.node = node

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open_kept, (self.head, self.name, self.node)

    def __repr__(self) -> str:
        return f"<a result on node {self.node}: {self.name}>"


heads: dict[str, Callable[[Kept], Any]] = {}
"""The heads in this process by their names; each makes the engine's reference to a result."""


def open_kept(head: str, name: Any, node: str) -> Any:
    """Return the engine's reference to a result, or what stands for it where the head is not in this process."""
    make_reference: Callable[[Kept], Any] = heads.get(head, lambda kept: kept)
    return make_reference(Kept(head, name, node))


def fetch(name: Any, shown: str) -> Any:
    """Return a value that the engine holds.

    Raises:
        JobSerializationError: it holds no such value, or this process is no worker on a node of the engine.
    """
    return _ask(FETCH, (name, shown), None, shown)[1]


def keep(value: Any, job_id: str, number: int) -> Any:
    """Give the result of an attempt to the engine. Return what the program gets of it.

    Raises:
        JobSerializationError: it cannot be kept.
    """
    return Kept(*_ask(KEEP, (job_id, number), value, "the result")[0])


def _ask(what: str, about: Any, value: Any, shown: str) -> tuple[Any, Any]:
    if not (address := os.environ.get(VARIABLE)):
        raise JobSerializationError(f"{shown} cannot be reached: this process is not on a node of the cluster")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\0" + address)
        send(sock, (what, about), value)
        (is_right, answer), value = receive(sock)
    if not is_right:
        raise JobSerializationError(answer)
    return answer, value


def send(sock: socket.socket, head: Any, value: Any) -> None:
    """Send a message: a head of plain data, and a value."""
    body, file = values.dump(value, values.checked_dumps)
    flags, fds = (0, []) if file is None else (wire.IN_FILE, [file.fd])
    frame = wire.pack_frame(wire.MESSAGE, flags, body=pickle.dumps(head, 5) + body)
    if rest := memoryview(frame)[wire.send_fds(sock, frame, fds) :]:  # The other side may have answered, and closed it.
        sock.sendall(rest)


def receive(sock: socket.socket) -> tuple[Any, Any]:
    """Return the head and the value of a message.

    Raises:
        EOFError: the other side has gone.
    """
    with contextlib.closing(wire.FrameReader(sock, bytearray(1 << 16))) as reader:
        while not (arrived := reader.read()):
            pass
        _, flags, *_, body = arrived[0]
        head, rest = pickle.load(stream := io.BytesIO(body)), stream.read()
        if not flags & wire.IN_FILE:
            return head, pickle.loads(rest)
        if (fd := reader.fds.popleft() if reader.fds else -1) < 0:
            raise JobSerializationError("no file descriptor came with a large value: raise the limit (ulimit -n)")
        return head, values.MemoryFile(fd, rest).load()
