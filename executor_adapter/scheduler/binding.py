"""Finds which arguments a function accepts, and passes a job's own values to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, nearest, resolve, shown


class Parameters:
    """The parameters of a function, as far as its signature is known."""

    def __init__(self, function: Callable[..., Any] | str) -> None:
        try:
            parameters = list(inspect.signature(resolve(function)).parameters.values())
        except ValueError:
            parameters = []
            self.unknown = True  # Some built-in functions have no signature.
        else:
            self.unknown = False
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self.has_kwargs = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        self.names = [p.name for p in parameters if p.kind in by_name]
        self._in_order = [p.name for p in parameters if p.kind in by_position]

    def accept(self, name: str) -> bool:
        """Return whether the function accepts an argument of this name."""
        return self.has_kwargs or name in self.names

    def filled_by_position(self, count: int) -> list[str]:
        """Return the names of the parameters that `count` positional arguments fill."""
        return self._in_order[:count]


def bind(job: Job, metadata_keys: Iterable[str]) -> None:
    """Add to the job's keyword arguments its tool name and metadata, where its function accepts them and lacks them."""
    parameters = Parameters(job.function)
    values = {"tool_name": job.tool_name} | {key: job.metadata.get(key) for key in metadata_keys}
    positional = parameters.filled_by_position(len(job.args))
    for name, value in values.items():
        if value is not None and parameters.accept(name) and name not in positional:
            job.kwargs.setdefault(name, value)


def check_own_arguments(function: Callable[..., Any] | str, arguments: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that the function cannot take, or that were meant as fields of Job.

    Raises:
        InvalidJobError: The message names the argument and what to do.
    """
    parameters = Parameters(function)
    for name in arguments:
        if name in Job.model_fields:
            raise InvalidJobError(
                f"{name!r} is a field of Job, not an argument: make a Job with it and give that to job_queue.add_job"
            )
        if not parameters.accept(name) and not parameters.unknown:
            near = nearest(name, [*parameters.names, "tool_name"])
            hint = f"did you mean {near}?" if near else f"it takes {', '.join(parameters.names) or 'none by name'}"
            raise InvalidJobError(f"{shown(function)} takes no argument {name!r}: {hint}")
