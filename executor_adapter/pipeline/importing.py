"""Imports what the configuration names as `module:name`."""

from __future__ import annotations

import importlib.util
import operator
from contextlib import suppress
from pathlib import Path
from typing import Any

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.disk import checksum_of


def code_of(reference: str | None) -> str | None:
    """Return what identifies the file of the module in `module:name`; None where there is none, or it is the program.

    Modules above it are imported, and not itself.
    """
    name = (reference or "__main__").partition(":")[0]
    with suppress(Exception):  # Their own code runs and may raise anything; the step says it.
        spec = None if name == "__main__" else importlib.util.find_spec(name)
        return checksum_of(Path(spec.origin)) if spec and spec.origin else None
    return None


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
