"""The head's side of one agent: the attempts that it holds, and what it reports of them."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from executor_adapter.exceptions import NodeLostError
from executor_adapter.job import Shape
from executor_adapter.pools.base import Assignment, PoolSupervisor, Timer
from executor_adapter.pools.cluster import frames
from executor_adapter.pools.cluster.link import ArrivingFiles, Link, LinkEnd
from executor_adapter.pools.cluster.program import Source
from executor_adapter.pools.cluster.remote_attempt import pack_call, unpack_end
from executor_adapter.pools.transport.envelope import STOPPED, Body, Ending, crashed
from executor_adapter.pools.transport.functions import EncodedFunction
from executor_adapter.pools.transport.payload import Payload, attempt_part
from executor_adapter.worker import values, wire

logger = logging.getLogger("executor_adapter.cluster")

MAX_QUEUED_PER_SLOT = 24
"""Short calls that may wait at an agent behind each running one: more than in a worker, since the way is longer."""
MAX_FUNCTIONS = 4096
"""Functions that an agent keeps. When it has so many, it forgets all, and is sent again what it needs."""


@dataclass(slots=True, eq=False)
class Lease:
    """The right to run one attempt of this shape at a time on a node."""

    number: int
    shape: Shape
    since: float
    """When the pool got it."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the environment of its attempts, such as those that name its GPUs."""


@dataclass(slots=True)
class Holding:
    """The leases of one shape on one node, and how many attempts use them.

    Plain attempts share the leases of the shape (), and short ones may be queued behind them. Others have one each.
    """

    leases: list[Lease] = field(default_factory=list)
    """The oldest first."""
    used: int = 0
    """Attempts that are live, those that are queued behind others included."""
    most: int = 0
    """The highest number of them since the pool looked last."""
    retiring: int = 0
    """Leases that go back as soon as no attempt uses them, for the sake of others."""

    @property
    def unused(self) -> int:
        """Number of leases that no attempt uses."""
        return max(0, len(self.leases) - self.used)


class AgentOwner(Protocol):
    """Receives what an agent reports: the pool. Supervisor thread only."""

    supervisor: PoolSupervisor

    def on_hello(self, agent: RemoteAgent, hello: dict[str, Any]) -> None:
        """Take note of what the agent says of itself, and send it its set-up, or refuse it."""

    def granted(self, agent: RemoteAgent, lease: int, environment: Mapping[str, str] | None = None) -> None:
        """Take note that the engine has granted a lease on the agent's node."""

    def on_over(self, agent: RemoteAgent, seq: int, assignment: Assignment, shape: Shape) -> None:
        """Take note that an attempt is over for the agent, which so holds fewer of a shape than before."""

    def on_kept(self, body: Body) -> None:
        """Take note of what a job has returned whose result stays on a node."""

    def may_run_elsewhere(self, agent: RemoteAgent, assignment: Assignment, why: str) -> bool:
        """Take note that the agent's node lacks a module of the function; return whether another node may have it."""

    def on_leaving(self, agent: RemoteAgent) -> None:
        """Take note that the agent takes no more attempts."""

    def on_lost(self, agent: RemoteAgent, why: str) -> None:
        """Take note that the agent is gone, before its attempts are reported."""

    def lease_seconds(self) -> float:
        """Return how many seconds attempts may run at most, because of this host's lease on a store."""


class RemoteAgent:
    """One agent. Its `live` attempts are in the order in which they were given to it."""

    def __init__(self, owner: AgentOwner, end: LinkEnd, node: str, lost_after: float) -> None:
        self.node = node
        self.held: dict[Shape, Holding] = {(): Holding()}
        """What the pool has there of each shape."""
        self.live: dict[int, Assignment] = {}
        self.leaving = False
        self.is_closing = False
        """Whether it was asked to end."""
        self.is_ready = False
        """Whether it is accepted, and can be given attempts."""
        self.busy = 0
        """Slots that the pool counts for it."""
        self.lacking: set[int] = set()
        """The numbers of the functions of which its node lacks a module."""
        self._owner, self._supervisor = owner, owner.supervisor
        self._patience = 1.25 * lost_after + 0.5
        """Seconds of silence after which it is given up: it kills its attempts at `lost_after`."""
        self._long = 0
        """Number of plain attempts that are not short."""
        self._on_lease: dict[int, Lease] = {}
        """The leases of live attempts that are not plain."""
        self._seq = 0
        self._given: set[int] = set()
        self._functions = SentFunctions()
        self._files = ArrivingFiles()
        self._silence: Timer | None = None
        self.link = Link(self._supervisor, end, self._on_frames, lambda: self._end("its connection ended"))

    @property
    def slots(self) -> int:
        """Number of plain attempts that may run there at once."""
        return len(self.held[()].leases)

    @property
    def plain(self) -> int:
        """Number of plain attempts that are live."""
        return self.held[()].used

    @property
    def leases(self) -> list[Lease]:
        """All leases there."""
        return [lease for held in self.held.values() for lease in held.leases]

    def count(self, shape: Shape) -> int:
        """Return the number of leases of a shape there."""
        held = self.held.get(shape)
        return 0 if held is None else len(held.leases)

    def free(self, shape: Shape) -> int:
        """Return the number of leases of a shape on which an attempt could start now."""
        held = self.held.get(shape)
        takes_more = self.is_ready and not self.leaving and not self.is_closing
        return held.unused if held is not None and takes_more else 0

    @property
    def room_behind(self) -> int:
        """Number of short calls that may be queued behind short ones."""
        short_slots = self.slots - self.held[()].retiring - self._long
        if self.leaving or not self.is_ready or short_slots <= 0:
            return 0  # What waits there waits for something long.
        return short_slots * (1 + MAX_QUEUED_PER_SLOT) + self._long - self.plain

    # --- what the pool asks ---

    def accept(self, setup: dict[str, Any]) -> None:
        """Let the agent start its pool, and expect to hear from it from now on."""
        self.is_ready = True
        self.link.send(wire.pack_frame(frames.SETUP, body=pickle.dumps(setup)))
        self._watch_silence()
        self.link.flush()

    def add_lease(self, lease: Lease) -> None:
        """Let one more attempt of a shape run there."""
        held = self.held.setdefault(lease.shape, Holding())
        held.leases.append(lease)
        held.most += 1  # It is about to be used.
        if not lease.shape:
            self.link.send(wire.pack_frame(frames.SLOTS, word=self.slots))

    def remove_lease(self, shape: Shape) -> int:
        """Let one attempt of a shape less run there, and return the number of the oldest lease that none uses."""
        lease = self._unused_lease(shape)
        self.held[shape].leases.remove(lease)
        if not shape:
            self.link.send(wire.pack_frame(frames.SLOTS, word=self.slots))
        elif not self.held[shape].leases:
            del self.held[shape]
        self.return_lease(lease.number)
        return lease.number

    def _unused_lease(self, shape: Shape) -> Lease:
        return next(lease for lease in self.held[shape].leases if lease not in self._on_lease.values())

    def return_lease(self, lease: int) -> None:
        """Give back a lease that is not used."""
        self._send_now(wire.pack_frame(frames.RELEASED, word=lease))

    def give(self, assignment: Assignment, shape: Shape) -> int:
        """Send an attempt, which runs on a slot or on a lease of its own. Return its number here.

        Raises:
            Exception: the argument of its scope cannot be pickled.
        """
        payload: Payload = assignment.payload
        lease = self._unused_lease(shape) if shape else None
        if lease is not None:
            assignment.environment = dict(lease.environment) or None
        of_attempt = attempt_part(assignment)
        self.link.send(self._functions.frame(payload.function, may_forget=not self.link.unsent_files))
        seq = self._seq = self._seq + 1 & wire.MAX_WORD
        call = pack_call(assignment, seq, of_attempt, on_lease=lease is not None)
        assignment.worker = (self, seq)
        assignment.node = self.node
        self.live[seq] = assignment
        held = self.held[shape]
        held.used += 1
        held.most = max(held.most, held.used)
        if lease is not None:
            self._on_lease[seq] = lease
        self._long += lease is None and not assignment.max_behind
        if payload.file is None:
            self.link.send(call)
        else:
            self.link.send_file(seq, payload.file, call)
        return seq

    def recall(self, seq: int) -> bool:
        """Ask for an attempt back. Return True if it was not sent yet, and so is handed back at once."""
        if self.link.cancel_file(seq):
            self._forget(seq)
            return True
        self._send_now(wire.pack_frame(frames.RECALL, seq=seq))
        return False

    def stop(self, seq: int, grace: float) -> None:
        """Stop an attempt; if it has not started, it is handed back."""
        if self.link.cancel_file(seq):
            self._hand_back(seq)
        else:
            self._send_now(wire.pack_frame(frames.STOP, seq=seq, first=grace))

    def interrupt(self, seq: int) -> None:
        """Raise SoftTimeoutError in the function of an attempt."""
        self._send_now(wire.pack_frame(frames.INTERRUPT, seq=seq))

    def give_back_if_stuck(self, before: float) -> bool:
        """Ask for what waits there if that is too much, now that attempts which began before that time are not short.

        Return whether anything waits there.
        """
        if self.plain <= self.slots:
            return False
        for assignment in self.live.values():
            if assignment.max_behind and assignment.started_at is not None and assignment.started_at <= before:
                assignment.max_behind = 0
                self._long += 1
        if self.room_behind <= 0 and self._long:
            self._send_now(wire.pack_frame(frames.GIVE_BACK))
        return True

    def close(self, refusal: str = "") -> None:
        """Let the agent end; it has no live attempts. `refusal`: why it cannot be used, if that is so."""
        self.is_closing = True
        if self.is_ready or refusal:
            self._send_now(wire.pack_frame(frames.CLOSE, body=refusal.encode()))
        else:
            self.give_up("it was not ready yet")

    def give_up(self, why: str) -> None:
        """Speak no more with the agent, whose attempts are dead by now or soon.

        What it has said since may be on its way, or lost with its network: any attempt that was sent may have begun.
        """
        if self.link.is_open:
            self._given.update(seq for seq in self.live if not self.link.cancel_file(seq))
            self.link.close()
            self._end(why)

    def _send_now(self, frame: bytes) -> None:
        # The pools are flushed before limits are applied, so this would wait for the next turn.
        self.link.send(frame)
        self.link.flush()

    # --- what the agent reports ---

    def _on_frames(self, arrived: list[wire.Frame]) -> None:
        for kind, flags, number, seq, word, first, second, body in arrived:
            if kind in wire.RESULT_KINDS:
                self._on_result(kind, flags, number, seq, word, first, second, body)
            elif kind == wire.STARTED:
                self._on_started(seq, word, first)
            elif kind == frames.GIVEN:
                self._given.update(number for (number,) in frames.WORD.iter_unpack(body))
            elif kind == wire.MESSAGE:
                self._supervisor.on_message(self.live.get(seq), *values.load_plain(body)[0])
            elif kind == frames.BEAT:
                echo = wire.HEADER.pack(0, frames.BEAT, 0, 0, 0, 0, first, self._owner.lease_seconds())
                self._send_now(echo)
                if not self.link.is_open:
                    return  # What else has arrived is of attempts that are over.
            else:
                self._on_rare_frame(kind, seq, word, body)

    def _on_rare_frame(self, kind: int, seq: int, word: int, body: bytes) -> None:
        if kind == frames.FILE:
            self._files.add(seq, body)
        elif kind == frames.HANDED_BACK:
            self._hand_back(seq)
        elif kind == frames.LEASED:
            self._owner.granted(self, word, json.loads(body or b"{}"))
        elif kind == frames.LEAVING:
            self.leaving = True
            self._owner.on_leaving(self)
        elif kind == frames.HELLO:
            hello = json.loads(body)
            self.node = self.node or str(hello["node"])
            self._owner.on_hello(self, hello)

    def _on_started(self, seq: int, pid: int, age: float) -> None:
        if (assignment := self.live.get(seq)) is not None:
            assignment.pid = pid
            assignment.started_at = self._supervisor.now() - age
            self._supervisor.started(assignment, assignment.started_at)

    def _on_result(
        self, kind: int, flags: int, number: int, seq: int, peak: int, start_age: float, end_age: float, body: bytes
    ) -> None:
        fd = self._files.take(seq) if flags & wire.IN_FILE else -1
        if (assignment := self._forget(seq)) is None:
            return
        outcome = unpack_end(assignment, kind, flags, number, body, fd)
        lack = outcome.error.text if outcome.error and outcome.error.code == "MISSING_MODULE" else ""
        if outcome.ending is Ending.UNSENDABLE and lack and self._owner.may_run_elsewhere(self, assignment, lack):
            self._supervisor.handed_back(assignment)
            return
        now = self._supervisor.now()
        if start_age >= 0.0:
            if assignment.started_at is None:
                self._supervisor.started(assignment, now - start_age)
            assignment.started_at = now - start_age
        assignment.ended_at = now - end_age
        assignment.peak_rss = peak << 10 or None
        if assignment.stop_asked_at is not None and assignment.ended_at <= assignment.stop_asked_at:
            assignment.stop_asked_at = None
        if outcome.ending is Ending.RETURNED and assignment.job.keep:
            self._owner.on_kept(outcome.body)
        self._supervisor.ended(assignment, outcome)

    def _hand_back(self, seq: int) -> None:
        if (assignment := self._forget(seq)) is not None:
            self._supervisor.handed_back(assignment)

    def _forget(self, seq: int) -> Assignment | None:
        """Drop an attempt that is over for this agent; None if it is not live."""
        if (assignment := self.live.pop(seq, None)) is None:
            return None
        self._given.discard(seq)
        lease = self._on_lease.pop(seq, None)
        assignment.worker = None
        self._long -= lease is None and not assignment.max_behind
        shape = () if lease is None else lease.shape
        self.held[shape].used -= 1
        self._owner.on_over(self, seq, assignment, shape)
        return assignment

    # --- its end ---

    def _watch_silence(self) -> None:
        due = self.link.heard_at + self._patience
        now = self._supervisor.now()
        if now < due:
            self._silence = self._supervisor.call_at(due, self._watch_silence)
        else:
            self.give_up(f"it was silent for {now - self.link.heard_at:.1f} s")

    def _end(self, why: str) -> None:
        """Report what was live: what a worker was about to get may have begun, and all else has not."""
        if self._silence is not None:
            self._silence.cancel()
        self._files.close()
        live, given = list(self.live.items()), self._given
        self.live, self._given, self._on_lease, self._long = {}, set(), {}, 0
        self._owner.on_lost(self, why)
        self.held = {(): Holding()}
        for _, assignment in live:
            assignment.worker = None
        for seq, assignment in live:
            if seq in given:
                self._report_lost(assignment, why)
        for seq, assignment in reversed(live):
            if seq not in given:
                self._supervisor.handed_back(assignment)

    def _report_lost(self, assignment: Assignment, why: str) -> None:
        assignment.ended_at = self._supervisor.now()
        if assignment.stop_asked_at is not None:
            self._supervisor.ended(assignment, STOPPED)
            return
        error = NodeLostError(f"node {self.node} was lost while it ran the function: {why}")
        self._supervisor.ended(assignment, crashed(error))


class SentFunctions:
    """Knows which functions an agent has, so that each is sent once."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._sources: dict[Source, int] = {}

    def frame(self, function: EncodedFunction, *, may_forget: bool) -> bytes:
        """Return the frame that must precede a call of `function`; empty if the agent has the function.

        `may_forget`: no call is still to be sent that refers to a function which the agent has.
        """
        if function.number in self._known:
            return b""
        flags = wire.USE_ONCE if function.once else 0
        if len(self._known) >= MAX_FUNCTIONS and may_forget:
            self._known.clear()
            flags |= wire.FORGET_OTHERS
        if not function.once:
            self._known.add(function.number)
        before = len(self._sources)
        numbers = [self._sources.setdefault(source, len(self._sources)) for source in function.sources or ()]
        new = [tuple(source) for source in list(self._sources)[before:]]
        body = pickle.dumps((function.encoded, numbers, new), 5)
        return wire.pack_frame(wire.FUNCTION, flags, word=function.number, body=body)
