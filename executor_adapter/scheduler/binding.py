"""Finds which arguments a function accepts, and passes a job's own values to it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job import Job, nearest, resolve, shown


def accepts(
    function: Callable[..., Any] | str, name: str, args: Sequence[Any] = (), *, without_signature: bool = False
) -> bool:
    """Return whether the function accepts an argument of this name beside `args`, as far as its signature is known.

    `without_signature`: what is returned for a function that has none, as some built-in ones.
    """
    try:
        inspect.signature(resolve(function)).bind_partial(*args, **{name: None})
    except ValueError:
        return without_signature
    except TypeError:
        return False
    return True


def bind(job: Job, metadata_keys: Iterable[str]) -> None:
    """Add to the job's keyword arguments its tool name and metadata, where its function accepts them and lacks them."""
    values = {"tool_name": job.tool_name} | {key: job.metadata.get(key) for key in metadata_keys}
    for name, value in values.items():
        if value is not None and accepts(job.function, name, job.args):
            job.kwargs.setdefault(name, value)


def check_own_arguments(function: Callable[..., Any] | str, arguments: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that the function cannot take, or that were meant as fields of Job.

    Raises:
        InvalidJobError: The message names the argument and what to do.
    """
    for name in arguments:
        if name in Job.model_fields:
            raise InvalidJobError(
                f"{name!r} is a field of Job, not an argument: make a Job with it and give that to job_queue.add_job"
            )
        if not accepts(function, name, without_signature=True):
            parameters = inspect.signature(resolve(function)).parameters.values()
            names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
            near = nearest(name, [*names, "tool_name"])
            hint = f"did you mean {near}?" if near else f"it takes {', '.join(names) or 'none by name'}"
            raise InvalidJobError(f"{shown(function)} takes no argument {name!r}: {hint}")
