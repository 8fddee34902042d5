"""An attempt on its way: how a head packs its call, how its node knows it, and what the head learns of its end."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

from executor_adapter.error_facts import ErrorFacts
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.cluster import frames
from executor_adapter.pools.transport.envelope import Body, Ending, Outcome
from executor_adapter.pools.transport.functions import EncodedFunction
from executor_adapter.pools.transport.payload import Payload
from executor_adapter.worker import values, wire

MAX_BEHIND = 8
"""How many calls may be queued behind a short one on a node, which does not know how short it is."""


class RemoteAttempt(Assignment):
    """An attempt that a head has sent."""

    __slots__ = ("is_on_lease", "is_told", "returns", "seq")

    def __init__(self, seq: int, number: int, job_id: str, payload: Payload, flags: int) -> None:
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


def pack_end(outcome: Outcome, attempt: RemoteAttempt | None) -> bytes:
    """Return the body of an ENDED: plain data, in which the exception of this package is pickled by itself."""
    of_worker: tuple[int | None, ...] = (None,) * 4
    if attempt is not None:
        of_worker = (attempt.exit_code, attempt.exit_signal, attempt.pid, attempt.peak_rss)
    error = None if outcome.error is None else (tuple(outcome.error), pickle.dumps(outcome.body.exception(), 5))
    return pickle.dumps((outcome.ending.name, error, *of_worker), 5)


def unpack_end(assignment: Assignment, body: bytes) -> Outcome:
    """Return how an attempt ended, and note what its node knows of its worker."""
    name, error, exit_code, exit_signal, pid, peak = values.load_plain(body)[0]
    assignment.exit_code, assignment.exit_signal = exit_code, exit_signal
    assignment.pid, assignment.peak_rss = pid, peak
    if error is None:
        return Outcome(Ending[name])
    facts = ErrorFacts(*error[0])
    return Outcome(Ending[name], facts, None, Body(frame=error[1], facts=facts, job_id=assignment.job.job_id))
