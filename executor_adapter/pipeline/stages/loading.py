"""Finds stages by name: those of this package, those of installed packages, and functions as `module:function`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.importing import check_module, import_object
from executor_adapter.pipeline.stages.base import NamedStage, Stage

GROUP = "executor_adapter.stages"
"""The group of the entry points by which packages offer stages."""
BUILT_IN = {
    "deduplicate": "executor_adapter.pipeline.stages.deduplicate:deduplicate",
    "enrich": "executor_adapter.pipeline.stages.enrich:enrich",
    "normalise": "executor_adapter.pipeline.stages.normalise:normalise",
    "validate": "executor_adapter.pipeline.stages.validate:validate",
}

Spec = str | Mapping[str, Any]
"""A stage in the configuration: its name, or a mapping of `stage` to its name and of its options to their values."""


def load_stage(spec: Spec, lake: Path | None = None, key: str = "stages") -> NamedStage:
    """Return a stage that is ready to be called; a new one for each window, because some remember rows.

    A name without options is a function of a DataFrame where it is given as `module:function`. With options, and for
    every stage of an entry point, the name is that of a function that takes the options and returns the stage.

    Args:
        spec: the stage.
        lake: the folder of the lake, for stages that have a parameter of this name.
        key: where the stage stands in the configuration, for messages.

    Raises:
        ConfigurationError: there is no such stage, or it has no such option.
    """
    options = {} if isinstance(spec, str) else {str(key): value for key, value in spec.items() if key != "stage"}
    name = spec if isinstance(spec, str) else spec.get("stage")
    if not isinstance(name, str):
        raise ConfigurationError(f"{key}: {spec!r} is not allowed: must be a name, or a mapping with the key stage")
    if ":" in name and not options:
        return NamedStage(name, import_object(name, key))
    factory = import_object(name if ":" in name else _reference(name, key), key)
    return NamedStage(name, _made(f"{key}: {name}", factory, options, lake))


def check_stage(spec: Spec, key: str) -> None:
    """Refuse a stage that is not there, as far as that is seen without importing its module; `key` is where it stands.

    Raises:
        ConfigurationError: there is no such stage or module.
    """
    name = spec if isinstance(spec, str) else spec.get("stage")
    if not isinstance(name, str):
        raise ConfigurationError(f"{key}: {spec!r} is not allowed: must be a name, or a mapping with the key stage")
    if ":" not in name:
        _reference(name, key)
    for reference in (name, "" if isinstance(spec, str) else str(spec.get("schema", ""))):
        if ":" in reference:
            check_module(reference, key)


def stage_names() -> list[str]:
    """Return the names of the stages of this package and of the installed ones."""
    return sorted({*BUILT_IN, *entry_points(group=GROUP).names})


def _reference(name: str, key: str) -> str:
    if name in BUILT_IN:
        return BUILT_IN[name]
    found = list(entry_points(group=GROUP, name=name))
    if not found:
        near = difflib.get_close_matches(name, stage_names(), n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigurationError(
            f"{key}: {name!r} is not allowed: {hint}must be one of {', '.join(stage_names())}, or module:function"
        )
    if len({each.value for each in found}) > 1:
        raise ConfigurationError(f"{key}: {name!r} is in several packages: {', '.join(each.value for each in found)}")
    return found[0].value


def _made(place: str, factory: Callable[..., Stage], options: dict[str, Any], lake: Path | None) -> Stage:
    parameters = inspect.signature(factory).parameters
    if "lake" in parameters and "lake" not in options:
        options["lake"] = lake
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        allowed = ", ".join(each for each in parameters if each != "lake")
        raise ConfigurationError(f"{place}: {error}: its options are {allowed}") from None
    try:
        return factory(**options)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{place}: {error}") from error
