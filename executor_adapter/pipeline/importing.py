"""Imports what the configuration names as `module:name`."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from executor_adapter.exceptions import ConfigurationError


def import_object(reference: str, key: str) -> Any:
    """Return what `module:name` means; `key` is the key of the configuration in which it stands.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    module, _, qualname = reference.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception as error:  # The module's own code runs and may raise anything.
        raise ConfigurationError(
            f"{key}: {reference!r} cannot be imported: {type(error).__name__}: {error}: must be module:name"
        ) from error
    return found


def check_module(reference: str, key: str) -> None:
    """Refuse a reference whose module is not there, without importing it.

    Raises:
        ConfigurationError: it is not there.
    """
    module = reference.partition(":")[0]
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ConfigurationError(f"{key}: {reference!r}: there is no module {module}: must be module:name")
