"""Tools for users' own tests: jobs that run inline on a clock that the test moves, and retries without delay.

from executor_adapter.testing import InlineExecutor, set_testing

def test_a_failed_collection_is_tried_again_after_a_minute():
    with InlineExecutor() as executor:
        future = executor.submit(Job(function=collect, retry_delay=60.0, retry=...))
        executor.clock.advance(61)
        assert future.result(timeout=0) == ...

def test_without_retries():
    with set_testing(attempts=1):
        ...
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Self

from executor_adapter.config import Settings
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.executor import JobExecutor, stop_tracking
from executor_adapter.job import limit_attempts
from executor_adapter.pools.base import Assignment, PoolSupervisor, WorkerPool
from executor_adapter.pools.in_process.call import bind, call_in_job
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.pools.transport.envelope import STOPPED
from executor_adapter.supervision.supervisor import Supervisor
from executor_adapter.supervision.thread import SupervisorThread

__all__ = ["FakeClock", "InlineExecutor", "set_testing"]


class FakeClock:
    """A monotonic clock in seconds that stands still until it is moved. Calling it returns the time."""

    def __init__(self, start: float = 0.0) -> None:
        self.time = start
        self.on_advance: list[Callable[[], None]] = []

    def __call__(self) -> float:
        return self.time

    def advance(self, seconds: float) -> None:
        """Move the clock on, and do what is due by then.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError(f"seconds={seconds}: a monotonic clock does not go back")
        self.time += seconds
        for callback in self.on_advance:
            callback()


def set_testing(*, attempts: int = 1) -> AttemptLimit:
    """Allow each job at most `attempts`, and retry without delay, until the result is left as a context manager.

    Raises:
        ValueError: `attempts` is less than 1.
    """
    if attempts < 1:
        raise ValueError(f"attempts={attempts} runs no job: give at least 1")
    return AttemptLimit(limit_attempts(attempts))


class AttemptLimit:
    """The limit that `set_testing` has set; `restore`, or leaving its context, brings back the previous one."""

    def __init__(self, previous: int | None) -> None:
        self._previous = previous

    def restore(self) -> None:
        """Undo `set_testing`."""
        limit_attempts(self._previous)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


class InlineExecutor(JobExecutor):
    """A JobExecutor without threads and processes: `submit` runs the job before it returns, in the caller's thread.

    Delays, limits and timeouts follow `clock`; a function that moves the clock past its max_runtime times out when it
    returns. Retries, priorities, observers, `cancel` and `drive` work as in JobExecutor.

    Raises:
        ConfigurationError: a subclass overrides `execute_job` or a hook.
    """

    def __init__(self, max_workers: int = 1, *, clock: FakeClock | None = None, **options: Any) -> None:
        self.clock = clock or FakeClock()
        super().__init__(max_workers, **({"config": Settings()} | options))
        stop_tracking(self._supervisor)  # The clock does not move while the interpreter exits.

    def _make_supervisor(self, **options: Any) -> Supervisor:
        return inline_supervisor(self.clock, **(options | {"make_pool": InlinePool}))

    def _make_hooked(self) -> None:
        if super()._make_hooked() is not None:
            name = type(self).__name__
            raise ConfigurationError(
                f"{name} has hooks, which run on a thread of their own: test them in a JobExecutor"
            )


def inline_supervisor(clock: FakeClock, **options: Any) -> Supervisor:
    """Return a supervisor that runs on its callers' thread, by `clock`; `options` are those of `Supervisor`."""
    supervisor = Supervisor(**(options | {"clock": clock, "make_thread": InlineThread}))
    clock.on_advance.append(supervisor.thread.start)
    return supervisor


class InlineThread(SupervisorThread):
    """Runs the supervisor's loop on its callers' thread, on each call and whenever its clock moves."""

    is_inline = True

    def __init__(self, loop: SupervisorLoop, *args: Any) -> None:
        super().__init__(loop, *args)
        self._started = self._take_right_to_run()  # No thread ever runs the loop.

    def start(self) -> None:
        """Do all that is due. Called from within itself, it lets another turn of the loop follow."""
        self._loop.wake()
        if self.running_in is not None or self.closed.is_set():
            return
        self.running_in = threading.get_ident()
        try:
            self._loop.run_due()
            if self._loop.stopped:
                self._loop.close()
                self.notify_end()
        finally:
            self.running_in = None

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        super().call_soon(callback, *args)
        self.start()

    def wait(self) -> None:
        if not self.closed.is_set():  # Waiting would never end.
            raise RuntimeError(
                "jobs of the InlineExecutor wait for its clock: move it with clock.advance(...), or cancel them with "
                "shutdown(timeout=0)"
            )
        super().wait()


class InlinePool(WorkerPool):
    """Runs each function on the supervisor's thread, which is the caller's."""

    name: ClassVar[str] = "inline"

    def __init__(self, name: str, supervisor: PoolSupervisor) -> None:
        super().__init__(supervisor, max_workers=1)
        self._stopped: set[Assignment] = set()

    def start(self, assignment: Assignment) -> None:
        self.busy += 1
        self.supervisor.started(assignment, self.supervisor.now())
        self.supervisor.call_soon(self._run, assignment)

    def stop(self, assignment: Assignment, *, grace: float) -> None:
        self._stopped.add(assignment)

    def close(self, on_closed: Callable[[], None]) -> None:
        on_closed()

    def _run(self, assignment: Assignment) -> None:
        is_stopped = functools.partial(self._stopped.__contains__, assignment)
        call = bind(assignment.job)
        outcome = STOPPED if is_stopped() else call_in_job(assignment, self.supervisor, is_stopped, call)
        assignment.ended_at = self.supervisor.now()
        assert isinstance(self.supervisor, Supervisor)
        self.supervisor.stopping.apply_limits(assignment.ended_at)  # The function may have moved the clock.
        if assignment in self._stopped:
            outcome = STOPPED
        self.busy -= 1
        self._stopped.discard(assignment)
        self.supervisor.ended(assignment, outcome)
