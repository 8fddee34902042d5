"""An attempt on its way: how a head packs its call, how its node knows it, and what the head learns of its end."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

from executor_adapter.pools.base import Assignment
from executor_adapter.pools.cluster import frames
from executor_adapter.pools.transport.envelope import Body, Ending, Outcome, packed, received
from executor_adapter.pools.transport.functions import EncodedFunction
from executor_adapter.pools.transport.payload import Payload
from executor_adapter.worker import values, wire

MAX_BEHIND = 8
"""How many calls may be queued behind a short one on a node, which does not know how short it is."""
_ENDINGS = tuple(Ending)


class RemoteAttempt(Assignment):
    """An attempt that a head has sent."""

    __slots__ = ("is_on_lease", "is_told", "returns", "seq")

    def __init__(self, seq: int, number: int, job_id: str, payload: Payload | None, flags: int) -> None:
        job: Any = SimpleNamespace(job_id=job_id)  # All that this process knows of it.
        super().__init__(job, number, payload)
        self.seq = seq
        self.max_behind = MAX_BEHIND if flags & frames.SHORT else 0
        self.is_on_lease = bool(flags & frames.ON_LEASE)
        """Whether it takes none of the agent's slots."""
        self.is_told = False
        """Whether the head knows that it has started."""
        self.returns = False
        """Whether the head wants it back."""


def pack_call(assignment: Assignment, seq: int, of_attempt: bytes, *, on_lease: bool) -> bytes:
    """Return the frame of a call. `of_attempt`: what belongs to this attempt alone."""
    payload: Payload = assignment.payload
    sizes = b"" if payload.file is None else payload.file.sizes
    part = frames.CALL_PART.pack(assignment.memory_limit or 0, len(sizes)) + sizes
    flags = payload.flags | (frames.SHORT if assignment.max_behind else 0) | (frames.ON_LEASE if on_lease else 0)
    size, function = len(part) + len(payload.body) + len(of_attempt), payload.function.number
    header = wire.HEADER.pack(
        size, wire.CALL, flags, assignment.number & 0xFFFF, seq, function, payload.max_runtime, 0.0
    )
    return b"".join((header, part, payload.body, of_attempt))


def unpack_call(
    seq: int, number: int, flags: int, code: EncodedFunction, body: bytes, file: values.MemoryFile | None, limit: float
) -> RemoteAttempt:
    """Return the attempt of a call. `body`: without the part for the agent. `limit`: its `max_runtime`, or 0."""
    id_size, _, _ = wire.CALL_SIZES.unpack_from(body)
    job_id = body[wire.CALL_SIZES.size : wire.CALL_SIZES.size + id_size].decode()
    payload = Payload(code, flags & ~frames.OF_AGENT, body, file, limit)
    return RemoteAttempt(seq, number, job_id, payload, flags)


def pack_end(attempt: RemoteAttempt, outcome: Outcome, now: float) -> bytes:
    """Return the frame of the end of an attempt. What its worker has written is in it, unopened."""
    body = outcome.body
    if outcome.error is not None and body.frame is None:  # It is an exception of this package, made here.
        body = Body(frame=pickle.dumps(body.exception(), 5))
    as_frame = Ending.RETURNED if outcome.error is None else Ending.RAISED
    kind, flags, content = packed(Outcome(as_frame, outcome.error, outcome.records, body))
    start_age = -1.0 if attempt.started_at is None else max(0.0, now - attempt.started_at)
    end_age = now - (attempt.ended_at or now)
    size, number, peak = frames.WORKER.size + len(content), _ENDINGS.index(outcome.ending), attempt.peak_rss or 0
    header = wire.HEADER.pack(size, kind, flags, number, attempt.seq, peak >> 10, start_age, end_age)
    code, signal = attempt.exit_code, attempt.exit_signal
    worker = frames.WORKER.pack(attempt.pid or 0, -1 if code is None else code, signal or 0)
    return b"".join((header, worker, content))


def unpack_end(assignment: Assignment, kind: int, flags: int, number: int, body: bytes, fd: int) -> Outcome:
    """Return how an attempt ended, and note what its node knows of its worker. `fd`: the memory file, or -1."""
    pid, code, signal = frames.WORKER.unpack_from(body)
    assignment.pid, assignment.exit_signal = pid or None, signal or None
    assignment.exit_code = None if code < 0 else code
    outcome, ending = received(kind, flags, body[frames.WORKER.size :], fd, assignment.job.job_id), _ENDINGS[number]
    # One that lacks its memory file has ended in another way than its node knows.
    lacks_file = flags & wire.IN_FILE and fd < 0
    return outcome if lacks_file or outcome.ending is ending else outcome._replace(ending=ending)
