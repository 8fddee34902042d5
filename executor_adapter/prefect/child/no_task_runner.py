"""The task runner of a flow run, as jobs in worker processes see it."""

from __future__ import annotations

from typing import Any, NoReturn, Self

from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner


class NoTaskRunner(TaskRunner[PrefectFuture[Any]]):
    """Refuses to submit tasks in a worker process, in place of the flow's task runner in the parent."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def duplicate(self) -> Self:
        """Return another one."""
        return type(self)()

    def submit(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse to submit a task.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a job in a worker process cannot submit tasks: submit them in the flow, or use pool='thread'"
        )
