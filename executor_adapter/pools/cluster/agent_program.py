"""The programs of an agent: one that ssh starts, and one that an engine's worker starts.

What ssh starts serves its head over stdin and stdout.

What a worker starts connects to its head by TCP or, where that cannot be reached, by a socket whose other end is the
worker's: it says so, and the engine carries the stream. Its stdin is a socket to the worker, which carries lines of
JSON in both directions. The first line says where the head listens, the token, and the worker's sys.path, so that what
an engine has brought there (uploaded files) is found. Further ones tell of leases. It says which leases are given back,
and ends when the worker's end is closed: the worker's process has died. Its last line says why it ends: "" where it was
told to.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from typing import Any

from executor_adapter.pools.cluster import frames
from executor_adapter.pools.cluster.agent import Agent
from executor_adapter.pools.cluster.handshake import HANDSHAKE_TIMEOUT, prove
from executor_adapter.pools.cluster.link import PipeEnd, end_of, take_stdio, tls_context
from executor_adapter.worker import wire

BOOTSTRAP = (
    "import json\n"
    "line = sys.stdin.buffer.raw.readline()\n"
    "if not line: sys.exit(0)\n"
    "setup = json.loads(line)\n"
    "from executor_adapter.pools.cluster.agent_program import main\n"
    "sys.path[:] = setup['path']\n"
    "sys.exit(main(setup))\n"
)
"""The program of the interpreter: the first line is read before anything of the user's can be imported."""

CONNECT_TIMEOUT = 3.0
"""Seconds that a head may take to accept a connection; then the link goes through the engine."""

LOG_FORMAT = "%(levelname)s %(message)s"


def serve_stdio() -> int:
    """Serve a head over stdin and stdout, or print what this node is. Return the exit code."""
    if sys.argv[1:] == ["--describe"]:
        from executor_adapter.pools.cluster.descriptions import describe  # An agent needs none of it.

        print(f"\n{json.dumps(describe())}")
        return 0
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    read_fd, write_fd = take_stdio()
    os.write(write_fd, frames.START)
    agent = Agent(PipeEnd(read_fd, write_fd))
    agent.run()
    return 1 if agent.failure else 0


def main(setup: dict[str, Any]) -> int:
    """Connect to the head and serve it. Return the exit code."""
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    worker = _Worker()
    host, port = setup["address"]
    way, relay = f"at {host}, port {port}", setup["relay"]
    try:
        try:
            sock = socket.create_connection((host, port), timeout=CONNECT_TIMEOUT)
        except OSError as error:
            way += f" ({error}), nor through its cluster"
            sock = socket.socket(fileno=relay)
            sock.set_inheritable(False)
        else:
            os.closerange(relay, relay + 1)
        worker.tell({"relay": sock.fileno() == relay})
        sock.settimeout(HANDSHAKE_TIMEOUT)
        if certificates := setup.get("certificates"):
            sock = tls_context(certificates, listens=False).wrap_socket(sock)
        prove(sock, bytes.fromhex(setup["token"]))
    except OSError as error:
        worker.tell({"failed": f"the agent cannot reach its head {way}: {error}"})
        return 1
    agent = Agent(end_of(sock), setup["node"])
    worker.serve(agent)
    agent.run()
    worker.tell({"failed": agent.failure})
    return 0


class _Worker:
    """The socket to the engine's worker that has started this process."""

    def __init__(self) -> None:
        stdin, stdout = take_stdio()
        os.close(stdout)
        self._socket = socket.socket(fileno=stdin)
        self._partial = b""

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to the worker, if that lives."""
        with contextlib.suppress(ConnectionError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def serve(self, agent: Agent) -> None:
        """Pass on what worker and head tell of leases while the agent runs, which is connected."""
        self.tell({"connected": True})
        agent.on_released = lambda lease: self.tell({"released": lease})
        agent.watch(self._socket.fileno(), lambda: self._read(agent))

    def _read(self, agent: Agent) -> None:
        chunk = b""
        with contextlib.suppress(ConnectionError):  # The worker has died before it had read everything.
            chunk = self._socket.recv(1 << 16)
        if not chunk:
            agent.unwatch(self._socket.fileno())
            agent.end()
            return
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message.get("lease", 0) < 0:  # This asks only whether the agent answers.
                self.tell({"released": message["lease"]})
            elif "lease" in message:
                environment = json.dumps(message["environment"]).encode()
                agent.link.send(wire.pack_frame(frames.LEASED, word=message["lease"], body=environment))
            if "leaving" in message:
                agent.leave()
        agent.link.flush()


if __name__ == "__main__":
    sys.exit(serve_stdio())
