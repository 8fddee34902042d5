"""Lends the slot of a job that waits for other jobs, which might otherwise never get one."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from contextlib import AbstractContextManager

from executor_adapter.pools.base import Assignment, PoolSupervisor


class SlotLoan:
    """Lends the slot of one attempt to other jobs while anything in the attempt waits for them. Thread-safe.

    As a context manager it does so while the block waits.
    """

    __slots__ = ("_waits", "assignment", "supervisor")

    def __init__(self, supervisor: PoolSupervisor, assignment: Assignment) -> None:
        self.supervisor = supervisor
        """The supervisor of the executor whose slot it is."""
        self.assignment = assignment
        self._waits = 0

    def begin(self, *, blocks: bool = True) -> None:
        """Count one more wait; the first one lends the slot. `blocks`: it blocks the thread that runs the attempt."""
        with _lock:
            self._waits += 1
            is_news = blocks or self._waits == 1
        if is_news:
            self.supervisor.call_soon(self._lend_or_take_back, blocks)

    def end(self, *, on_supervisor: bool = False) -> None:
        """Count one wait less; after the last one the attempt has its slot again.

        `on_supervisor`: the caller is the supervisor's thread, so the slot is taken back before any job can get it.
        """
        with _lock:
            self._waits -= 1
            is_news = not self._waits
        if is_news and on_supervisor:
            self._lend_or_take_back()
        elif is_news:
            self.supervisor.call_soon(self._lend_or_take_back)

    __enter__ = begin

    def __exit__(self, *_: object) -> None:
        self.end()

    def _lend_or_take_back(self, blocks: bool = False) -> None:
        # By what holds now: a wait may have ended, on the supervisor's thread too, before its beginning is seen here.
        if self._waits:
            self.supervisor.lend_slot(self.assignment, blocks)
        else:
            self.supervisor.take_slot_back(self.assignment)


_lock = threading.Lock()
"""Of all loans: few jobs wait, and each holds it for a moment."""

current_slot_loan: contextvars.ContextVar[SlotLoan | None] = contextvars.ContextVar("current_slot_loan", default=None)
"""The loan of the attempt whose function is the caller, in a pool of this process."""


def lend_slot() -> AbstractContextManager[None]:
    """Lend the slot of the job around the caller, if there is one, while the block waits for other jobs."""
    return current_slot_loan.get() or contextlib.nullcontext()
