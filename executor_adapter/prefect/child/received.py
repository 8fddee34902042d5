"""The values and the task that a worker process was sent, as its functions see them: see `payload`."""

from __future__ import annotations

import base64
import functools
import json
import pickle
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from prefect import Task

from executor_adapter.exceptions.display import text_of
from executor_adapter.job import is_coroutine_function


class NotSentError(AttributeError):
    """Raised where a function reads what its worker process was not sent."""


class NotSent:
    """Stands for a value that a worker process was not sent; any use of it raises NotSentError."""

    def __init__(self, what: str, why: str) -> None:
        vars(self).update(message=f"{what} was not sent to this worker process: {why}")

    def __repr__(self) -> str:
        return f"<{vars(self)['message']}>"

    def _raise(self, *_: Any) -> NoReturn:
        raise NotSentError(vars(self).get("message", "it was not sent"))

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __eq__ = __lt__ = __gt__ = __call__ = __add__ = _raise
    __hash__ = None  # type: ignore[assignment]


def received_values(sent: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the values that `payload.sendable` has packed; a NotSent stands for each that could not be packed.

    `what`: what the values are, for a message, with `{}` for the name.
    """
    values = dict(sent.get("plain", {}))
    for name, encoded in sent.get("pickled", {}).items():
        try:
            values[name] = pickle.loads(base64.b64decode(encoded))
        except Exception as error:
            values[name] = NotSent(what.format(name), f"it cannot be unpickled: {text_of(error)}")
    for name, why in sent.get("refused", {}).items():
        values[name] = NotSent(what.format(name), why)
    return values


# --- the task ---


class WorkerTask(Task[..., Any]):
    """The task of a job, as its function sees it in a worker process. It is called there as any Prefect task.

    Attributes that were sent pickled are unpickled when they are first read.
    """

    facts: str

    def __getattr__(self, name: str) -> Any:
        facts = json.loads(vars(self).get("facts", "{}"))
        for kind in ("pickled", "refused"):
            if name in facts.get(kind, {}):
                value = received_values({kind: {name: facts[kind][name]}}, "{}")[name]
                if isinstance(value, NotSent):
                    raise NotSentError(f"task {self.name}: {vars(value)['message']}")
                vars(self)[name] = value
                return value
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return task_of_function, (self.fn, self.facts)


def task_of_function(function: Callable[..., Any], facts: str) -> WorkerTask:
    """Return the task of `function` whose attributes are `facts`, see `payload.task_facts`."""
    try:
        hash(function)
    except TypeError:
        return _new_task(function, facts)
    return _known_task(function, facts)


def _new_task(function: Callable[..., Any], facts: str) -> WorkerTask:
    sent = json.loads(facts)
    try:
        task = WorkerTask(function)
    except Exception:  # Prefect makes no tasks of some callables, and of functions with a parameter named `wait_for`.
        task = WorkerTask(_function_of_no_task, name=getattr(function, "__name__", type(function).__name__))
        task.fn = function
    task.isasync = task.isasync or is_coroutine_function(function)
    vars(task).update(sent.get("plain", {}), facts=facts)
    for name in (*sent.get("pickled", ()), *sent.get("refused", ())):
        vars(task).pop(name, None)
    return task


_known_task = functools.lru_cache(maxsize=4)(_new_task)  # Few, because a function may refer to large values.


def _function_of_no_task(*_: Any, **__: Any) -> None:
    """The function of a task until it is given its own, which Prefect would refuse."""
