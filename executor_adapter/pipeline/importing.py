"""Imports what the configuration names as `module:name`."""

from __future__ import annotations

import importlib.util
import operator
from contextlib import suppress
from pathlib import Path
from typing import Any

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.disk import checksum_of


def code_of(reference: str, key: str) -> str | None:
    """Return what identifies the file of the module in `module:name`; None where there is none, or it is the program.

    Modules above it are imported, and not itself. Arguments and errors are those of `import_object`.
    """
    module = reference.partition(":")[0]
    with suppress(Exception, SystemExit):  # The code of those above it runs and may raise anything.
        if module != "__main__" and (spec := importlib.util.find_spec(module)) is not None:
            file = Path(spec.origin or "")
            return checksum_of(file) if file.is_file() else None
    import_object(reference, key)  # It says what is wrong.
    return None


def import_object(reference: str, key: str) -> Any:
    """Return what `module:name` means; `key` is the key of the configuration in which it stands.

    Raises:
        ConfigurationError: it cannot be imported.
    """
    module, _, name = reference.partition(":")
    try:
        return operator.attrgetter(name)(importlib.import_module(module))
    except (Exception, SystemExit) as error:  # The module's own code runs and may raise anything.
        said = f"{key}: {reference!r} cannot be imported: {type(error).__name__}: {error}"
        lacks = isinstance(error, ModuleNotFoundError) and not f"{module}.".startswith(f"{error.name}.")
        raise ConfigurationError(f"{said}: {'install it' if lacks else 'must be module:name'}") from error
