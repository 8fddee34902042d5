"""Imports what the configuration names as `module:name`."""

from __future__ import annotations

import importlib
import operator
from typing import Any

from executor_adapter.exceptions import ConfigurationError


def import_object(reference: str, key: str) -> Any:
    """Return what `module:name` means; `key` is the key of the configuration in which it stands.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    module, _, name = reference.partition(":")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except Exception as error:  # The module's own code runs and may raise anything.
        said = f"{key}: {reference!r} cannot be imported: {type(error).__name__}: {error}"
        lacks = isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}.")
        raise ConfigurationError(f"{said}: {'install it' if lacks else 'must be module:name'}") from error
