"""What runs in a Dask worker: tasks that hold leases, and the agent's process beside the worker.

A lease is one task that waits in a thread of the worker, so Dask counts the slot that is in use. The first lease starts
an agent, as a process of its own: the worker's event loop and its jobs do not contend for one interpreter, and the end
of the worker's process is seen as the end of the agent's stdin.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
from typing import Any

from executor_adapter.pools.cluster import started_agent
from executor_adapter.worker import interpreter_command

logger = logging.getLogger("executor_adapter.cluster")

_STATUS_INTERVAL = 0.2
"""Seconds between two looks at whether the worker is about to leave."""

_ANSWER_TIMEOUT = 2.0
"""Seconds that an agent may take to answer."""

_agents: dict[str, WorkerAgent] = {}
"""The agent of each head, by its token."""
_lock = threading.Lock()


def hold_lease(head: dict[str, Any], lease: int) -> str:
    """Hold a slot of this worker for a head until that gives it back. Return why it ended.

    `head`: the address at which it listens, and its token.
    """
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()
    agent = _agent_of(head, worker.address)
    released = agent.hold(lease)
    while not released.wait(_STATUS_INTERVAL):
        if worker.status.name != "running":
            agent.leave()
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            # The head has lost the agent, or needs the lease no more. A stopped agent must not keep the slot.
            agent.end_if_stuck()
            break
    return agent.why_ended(lease)


def _agent_of(head: dict[str, Any], node: str) -> WorkerAgent:
    with _lock:
        agent = _agents.get(head["token"])
        if agent is None or agent.has_ended:
            agent = _agents[head["token"]] = WorkerAgent(head, node)
        return agent


class WorkerAgent:
    """An agent's process: it is told which leases are held here, and says which are given back."""

    def __init__(self, head: dict[str, Any], node: str) -> None:
        self._lock = threading.Lock()
        self._released: dict[int, threading.Event] = {}
        self._ended = ""
        self._is_leaving = False
        self._answered = threading.Event()
        self._token = head["token"]
        self._process = subprocess.Popen(
            interpreter_command(started_agent.BOOTSTRAP),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._tell({**head, "node": node, "path": [os.path.abspath(entry) for entry in sys.path]})
        threading.Thread(target=self._listen, name="executor-adapter-agent", daemon=True).start()

    @property
    def has_ended(self) -> bool:
        """Whether its process takes no further lease."""
        return bool(self._ended)

    def hold(self, lease: int) -> threading.Event:
        """Tell the agent of a lease. The event is set when it is given back, or the agent has ended."""
        event = self._released[lease] = threading.Event()
        with self._lock:
            if self._ended:
                event.set()
            else:
                self._tell({"lease": lease})
        return event

    def leave(self) -> None:
        """Tell the agent that the worker is about to leave."""
        with self._lock:
            if not self._is_leaving and not self._ended:
                self._is_leaving = True
                self._tell({"leaving": True})

    def end_if_stuck(self) -> None:
        """Kill the agent if it does not answer: a signal has stopped it."""
        self._answered.clear()
        with self._lock:
            self._tell({"answer": True})
        if not self._answered.wait(_ANSWER_TIMEOUT) and not self._ended:
            self._process.kill()

    def why_ended(self, lease: int) -> str:
        """Forget a lease that has ended; return "" if it was given back, and otherwise how the agent ended."""
        self._released.pop(lease, None)
        return self._ended

    def _tell(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # It has ended, which `_listen` notices.
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        why = ""
        for line in self._process.stdout:
            message = json.loads(line)
            why = message.get("failed", why)
            if "answer" in message:
                self._answered.set()
            if (event := self._released.get(message.get("released", -1))) is not None:
                event.set()
        self._process.stdout.close()
        with self._lock:
            self._ended = why or f"the agent ended with code {self._process.wait()}"
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with _lock:
            if _agents.get(self._token) is self:
                del _agents[self._token]
        for event in list(self._released.values()):
            event.set()
