"""The flow runs that this process knows to be cancelled: the watcher finds them, and what ends with them says so."""

from __future__ import annotations

import signal
import threading
from typing import TypeVar
from uuid import UUID

from executor_adapter.error_facts import is_a
from executor_adapter.exceptions import JobCancelledError
from executor_adapter.executor import signal_watch

ASK_TIMEOUT = 1.0
"""Seconds to find out whether a signal that ends the program came with a cancel of the flow run."""

E = TypeVar("E", bound=BaseException)


class CancelledRuns:
    """Holds the ids of cancelled flow runs, and has the watcher ask for others at once where that matters."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.ids: set[UUID] = set()
        self.questions = 0
        """How often the watcher was asked to poll at once."""
        self.answers: dict[str, int] = {}
        """How many questions it has answered, by the name of each server that a thread of it polls."""
        self._asked_after: signal.Signals | None = None
        """The signal after which the watcher was asked, whether or not it answered."""

    def is_asked(self, server: str) -> bool:
        """Return whether the watcher has a question to answer for the server."""
        return self.questions > self.answers[server]

    def answer(self, server: str, questions: int) -> None:
        """Note that the watcher has polled the server, or cannot, after so many questions."""
        with self.changed:
            self.answers[server] = questions
            self.changed.notify_all()

    def ask(self) -> None:
        """Have the watcher poll at once, and wait for its answer, for ASK_TIMEOUT at most."""
        with self.changed:
            self.questions += 1
            number = self.questions
            self.changed.notify_all()
            self.changed.wait_for(lambda: min(self.answers.values(), default=number) >= number, ASK_TIMEOUT)

    def was_cancelled(self, flow_run_id: UUID) -> bool:
        """Return whether the flow run is known to be cancelled, by another poll if a signal ends the program."""
        with self.changed:
            ended_by = signal_watch.ended_by
            if ended_by is not None and ended_by is not self._asked_after:
                self.ask()
            self._asked_after = ended_by
            return flow_run_id in self.ids


cancelled_runs = CancelledRuns()
signal_watch.first.append(lambda _: cancelled_runs.ask())  # What the executors end because of it shall say why.

FLOW_RUN_CANCELLED = "its flow run was cancelled"


def explained(error: E, flow_run_id: UUID | None) -> E | JobCancelledError:
    """Return the error of a job of the flow run; for a cancellation that came with the flow run's, one that says so.

    A runner or a worker sends a signal when it cancels a flow run, and when it stops for another reason. So after a
    signal the server is asked, for at most ASK_TIMEOUT.
    """
    if flow_run_id is None or not is_a(error, JobCancelledError) or not cancelled_runs.was_cancelled(flow_run_id):
        return error
    return JobCancelledError(FLOW_RUN_CANCELLED, **error.context)
