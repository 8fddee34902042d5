"""The node's side: a process pool, directed by a head on another machine.

An agent takes calls, gives them to its pool, and passes on what its workers write without decoding it: no code of a
user runs in this process. It exits when the link ends, and its guardian kills what runs if this process is stopped.
"""

from __future__ import annotations

import json
import logging
import math
import pickle
import socket
from collections import deque
from collections.abc import Callable
from typing import Any

from executor_adapter.exceptions import JobSerializationError
from executor_adapter.pools.base import Assignment, Recall
from executor_adapter.pools.cluster import frames, portable
from executor_adapter.pools.cluster.link import ArrivingFiles, Link, LinkEnd
from executor_adapter.pools.cluster.program import Source
from executor_adapter.pools.cluster.remote_attempt import RemoteAttempt, pack_end, unpack_call
from executor_adapter.pools.kinds import pool_kind
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.pools.memory.available import AvailableMemory
from executor_adapter.pools.memory.guard import MemoryGuard
from executor_adapter.pools.transport.envelope import Ending, Outcome, failed
from executor_adapter.pools.transport.functions import EncodedFunction
from executor_adapter.worker import values, wire

logger = logging.getLogger("executor_adapter.cluster")

SETUP_TIMEOUT = 60.0
"""Seconds in which a head sets up an agent that has proved itself; one that has died never does."""


class Agent:
    """Implements `base.PoolSupervisor` for the pool of this node."""

    def __init__(self, end: LinkEnd, node: str = "") -> None:
        self.loop = loop = SupervisorLoop(self._turn)
        self.watch, self.watch_writable, self.unwatch = loop.watch, loop.watch_writable, loop.unwatch
        self.call_at, self.call_soon, self.now = loop.call_at, loop.call_soon, loop.now
        self.slots = 0
        self.live: dict[int, RemoteAttempt] = {}
        self.queue: deque[RemoteAttempt] = deque()
        """The live attempts that wait for a worker; those with a lease of their own, which need no slot, come first."""
        self._on_lease = 0
        """Number of live attempts that have a lease of their own."""
        self.on_released: Callable[[int], object] = lambda lease: None
        """Called with the number of a lease that the head gives back."""
        self.failure = ""
        """Why it has ended, unless its head has told it to or has closed the link."""
        self._held_fds = (end.write_fd,)
        self._pool: Any = None
        self._lost_after = math.inf
        self._echoed_at = 0.0
        self._guard: MemoryGuard | None = None
        self._begun: dict[int, RemoteAttempt] = {}
        """Attempts that have started, of which the head does not know yet."""
        self._functions: dict[int, EncodedFunction | str] = {}
        """The functions that were sent, by number; in words, why one cannot run here."""
        self._sources: list[Source] = []
        self._files = ArrivingFiles()
        self._ending = False
        why = f"its head did not set it up within {SETUP_TIMEOUT:.0f} s"
        self._patience = self.call_at(self.now() + SETUP_TIMEOUT, lambda: self.end(why))
        """Ends this agent if its head does not set it up: a link that is relayed stays open where the head has died."""
        self.link = Link(self, end, self._on_frames, self.end)
        said = json.dumps(frames.hello(node or socket.gethostname()))
        self.link.send(wire.pack_frame(frames.HELLO, body=said.encode()))

    def run(self) -> None:
        """Serve the head until it closes the link."""
        self.link.flush()
        self.loop.run()

    # --- from the head ---

    def _on_frames(self, arrived: list[wire.Frame]) -> None:
        for kind, flags, number, seq, word, first, second, body in arrived:
            if kind == wire.CALL:
                self._on_call(flags, number, seq, word, first, body)
            elif kind == wire.FUNCTION:
                self._on_function(flags, word, body)
            elif kind == frames.FILE:
                self._files.add(seq, body)
            elif kind == frames.BEAT:
                self._on_beat(first, second)
            elif kind == frames.STOP:
                self._stop(seq, first)
            else:
                self._on_rare_frame(kind, seq, word, body)

    def _on_rare_frame(self, kind: int, seq: int, word: int, body: bytes) -> None:
        if kind == frames.RECALL:
            self._recall(seq)
        elif kind == frames.INTERRUPT:
            self._interrupt(seq)
        elif kind == frames.GIVE_BACK:
            self._hand_back_queue()
        elif kind == frames.DROP_FILE:
            self._files.drop(seq)
        elif kind == frames.SLOTS:
            self.slots = word
            self._pool.resize(max(1, word))
        elif kind == frames.RELEASED:
            self.on_released(word)
        elif kind == frames.SETUP:
            self._set_up(pickle.loads(body))
        elif kind == frames.CLOSE:
            self.end(body.decode())

    def _interrupt(self, seq: int) -> None:
        """Interrupt an attempt as soon as its function has begun."""
        if (assignment := self.live.get(seq)) is not None and not self._pool.interrupt(assignment):
            self.call_at(self.now() + 0.005, lambda: self._interrupt(seq))

    def _hand_back_queue(self) -> None:
        while self.queue:
            self._hand_back(self.queue.pop())

    def leave(self) -> None:
        """Take nothing more, and hand back what waits for a worker: the node is about to go."""
        self.link.send(wire.pack_frame(frames.LEAVING))
        self._hand_back_queue()
        self.link.flush()

    def _set_up(self, setup: dict[str, Any]) -> None:
        logging.getLogger().setLevel(setup["log_level"])
        self._patience.cancel()
        self._lost_after = setup["lost_after"]
        memory = setup["options"].pop("memory")
        self._guard = None if memory is None else MemoryGuard(AvailableMemory(memory))
        make_pool: Any = pool_kind("process", "guardian")
        self._pool = make_pool(self, 1, held_fds=self._held_fds, **setup["options"])
        self._on_beat(wire.lease_time(), math.inf)
        self._beat()

    def _on_function(self, flags: int, number: int, body: bytes) -> None:
        if flags & wire.FORGET_OTHERS:
            self._functions.clear()
        encoded, numbers, new = pickle.loads(body)
        self._sources += map(Source._make, new)
        encoded, refusal = portable.choose(encoded, numbers, self._sources)
        self._functions[number] = refusal or EncodedFunction(encoded, once=bool(flags & wire.USE_ONCE))

    def _on_call(self, flags: int, number: int, seq: int, function: int, max_runtime: float, body: bytes) -> None:
        limit, sizes = frames.CALL_PART.unpack_from(body)
        at = frames.CALL_PART.size + sizes
        found = self._functions.pop(function) if flags & wire.USE_ONCE else self._functions[function]
        fd = self._files.take(seq) if flags & wire.IN_FILE and not isinstance(found, str) else -1
        if flags & wire.IN_FILE and fd < 0 and not isinstance(found, str):
            found = "the node has no room for the job's large arguments (memory, or file descriptors)"
        if isinstance(found, str):
            self._files.drop(seq)
            refused = RemoteAttempt(seq, number, "", None, flags)
            self._report_end(refused, failed(JobSerializationError(found), Ending.UNSENDABLE))
            return
        file = values.MemoryFile(fd, body[frames.CALL_PART.size : at]) if fd >= 0 else None
        assignment = unpack_call(seq, number, flags, found, body[at:], file, max_runtime)
        assignment.memory_limit = limit or None
        self.live[seq] = assignment
        if assignment.is_on_lease:
            self._on_lease += 1
            self._queue_before_others(assignment)
        else:
            self.queue.append(assignment)

    def _queue_before_others(self, assignment: RemoteAttempt) -> None:
        self.queue.insert(sum(each.is_on_lease for each in self.queue), assignment)

    def _recall(self, seq: int) -> None:
        assignment = self.live.get(seq)
        if assignment is None:
            return
        if assignment in self.queue:
            self.queue.remove(assignment)
            self._hand_back(assignment)
        else:
            assignment.returns = True
            assignment.returns = self._pool.recall(assignment) is Recall.TAKEN_BACK

    def _stop(self, seq: int, grace: float) -> None:
        self._recall(seq)
        if (assignment := self.live.get(seq)) is not None:
            assignment.stop_asked_at = self.now()
            self._pool.stop(assignment, grace=grace)

    # --- beats ---

    def _on_beat(self, sent_at: float, store_lease: float) -> None:
        """Let attempts run for `lost_after` seconds after this beat was sent, which the head has answered now."""
        self._echoed_at = sent_at
        self._pool.set_lease(sent_at + min(self._lost_after, store_lease))

    def _beat(self) -> None:
        """Tell the head that this node is alive; end if the head has not answered for too long."""
        now = wire.lease_time()
        if self._ending:
            return
        if now - self._echoed_at > self._lost_after:
            self.link.close()
            self.end(f"its head has not answered for {now - self._echoed_at:.1f} s")
            return
        self.link.send(wire.pack_frame(frames.BEAT, first=now))
        self.link.flush()
        self.call_at(self.now() + self._lost_after / frames.BEATS, self._beat)

    # --- turns ---

    def _turn(self) -> float:
        self.loop.run_calls()
        if self._pool is None or self._ending:
            return math.inf
        now = self.now()
        due = self._check_memory(now)
        if given := self._start_attempts():
            self.link.send(wire.pack_frame(frames.GIVEN, body=b"".join(map(frames.WORD.pack, given))))
            self.link.flush()
        # A worker gets a call only when the kernel has what says so: whatever happens, the head can tell.
        if not self.link.has_unsent_frames:
            self._pool.flush()
        self._report_starts()
        self.link.flush()
        return due

    def _check_memory(self, now: float) -> float:
        if self._guard is None or not self.live:
            return math.inf
        if self._guard.due <= now:
            self._guard.check(now, [self._pool])
        return self._guard.due

    def _start_attempts(self) -> list[int]:
        given = []
        is_short_of_memory = self._guard is not None and self._guard.holds
        has_descriptors = self.link.unsent_files <= values.MAX_OPEN_FILES  # Any that starts may return a large result.
        while self.queue and has_descriptors and not (is_short_of_memory and self._pool.busy):
            assignment = self.queue[0]
            # Where a plain one comes first, all those with a lease of their own have started.
            if assignment.is_on_lease or self._pool.busy - self._on_lease < self.slots:
                self._pool.start(self.queue.popleft())
            elif assignment.max_behind and self._pool.queue_behind(assignment):
                self.queue.popleft()
                if self._pool.relief is None:
                    self._pool.expect_overdue()
            else:
                break
            given.append(assignment.seq)
        return given

    def _report_starts(self) -> None:
        now = self.now()
        for seq, assignment in self._begun.items():
            assignment.is_told = True
            age = now - (assignment.started_at or now)
            self.link.send(wire.pack_frame(wire.STARTED, seq=seq, word=assignment.pid or 0, first=age))
        self._begun.clear()

    # --- reports of the pool ---

    def started(self, assignment: Assignment, at: float) -> None:
        assert isinstance(assignment, RemoteAttempt)
        assignment.started_at = at
        self._begun[assignment.seq] = assignment

    def on_message(self, assignment: Assignment | None, topic: str, content: Any) -> None:
        if isinstance(assignment, RemoteAttempt):
            body = pickle.dumps((topic, content), 5)
            self.link.send(wire.pack_frame(wire.MESSAGE, seq=assignment.seq, body=body))

    def is_output_full(self, assignment: Assignment | None) -> None:
        """Hold up no output: the program's streams are on another machine."""

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        assert isinstance(assignment, RemoteAttempt)
        self._forget(assignment)
        if not self._ending:  # Otherwise the head knows that this agent is gone, and so is what it ran.
            self._report_end(assignment, outcome)

    def _report_end(self, assignment: RemoteAttempt, outcome: Outcome) -> None:
        frame = pack_end(assignment, outcome, self.now())
        if (file := outcome.body.file) is not None:
            self.link.send_file(assignment.seq, file, frame)
        else:
            self.link.send(frame)

    def handed_back(self, assignment: Assignment) -> None:
        assert isinstance(assignment, RemoteAttempt)
        self._begun.pop(assignment.seq, None)
        if assignment.is_told or assignment.returns:
            self._hand_back(assignment)
        elif assignment.seq in self.live:
            self._queue_before_others(assignment)

    def lend_slot(self, assignment: Assignment, blocks: bool) -> None:
        raise AssertionError("a process cannot wait for a job of its program")

    def take_slot_back(self, assignment: Assignment) -> None:
        raise AssertionError("no slot was lent")

    def _hand_back(self, assignment: RemoteAttempt) -> None:
        self.link.send(wire.pack_frame(frames.HANDED_BACK, seq=self._forget(assignment)))

    def _forget(self, assignment: RemoteAttempt) -> int:
        self._begun.pop(assignment.seq, None)
        if self.live.pop(assignment.seq, None) is not None:
            self._on_lease -= assignment.is_on_lease
        return assignment.seq

    # --- the end ---

    def end(self, failure: str = "") -> None:
        """Kill what runs, and end the loop when nothing is left. `failure`: what was wrong, if anything was."""
        if failure:
            self.failure = failure
            logger.warning("this agent ends: %s", failure)
        if self._pool is None:
            self.loop.stop()
        elif not self._ending:
            self._ending = True
            self.queue.clear()
            for assignment in list(self.live.values()):
                self._pool.stop(assignment, grace=0.0)
            self._close_when_empty()

    def _close_when_empty(self) -> None:
        if self.live and any(each.worker is not None for each in self.live.values()):
            self.call_at(self.now() + 0.005, self._close_when_empty)
        else:
            self._pool.close(self.loop.stop)
