"""Decides which modules and functions a child process can import as this process has them.

A function is sent by reference only if the child process finds the same file under the same name. It does not find:
`__main__`, a module that was loaded from a file under a name of the loader's choice, a module made at run time, and a
module that another file on the path now hides.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_NEVER_IMPORTABLE = ("__main__", "__mp_main__")
_LOADER_PREFIX = "__prefect_loader_"
"""Prefix of the names of modules that Prefect loaded from a file; they are in no directory of the path."""


def current_path() -> list[str]:
    """Return sys.path in a form that another process can use: an empty entry means this process's working directory."""
    return [os.path.abspath(entry) if isinstance(entry, str) else entry for entry in sys.path]


_results: dict[str, tuple[ModuleType, bool]] = {}
_not_importable: tuple[tuple[int, str | None], tuple[bytes, ...]] = ((-1, None), ())
"""The state of sys.modules when the names were collected, and the names."""


def is_importable(module: ModuleType) -> bool:
    """Return whether a child process with this sys.path imports the same file under the module's name."""
    name = getattr(module, "__name__", None)
    if not isinstance(name, str) or sys.modules.get(name) is not module:
        return False
    known = _results.get(name)
    if known is None or known[0] is not module:
        known = _results[name] = (module, _check(name, module))
    return known[1]


def _check(name: str, module: ModuleType) -> bool:
    if name in _NEVER_IMPORTABLE or name.startswith(_LOADER_PREFIX):
        return False
    parent, _, _ = name.rpartition(".")
    if parent and not (parent in sys.modules and is_importable(sys.modules[parent])):
        return False
    spec = _find_spec(name, parent)
    if spec is None:
        return False
    file = getattr(module, "__file__", None)
    return spec.origin in ("built-in", "frozen") or file is None or _same_file(spec.origin, file)


def _find_spec(name: str, parent: str) -> ModuleSpec | None:
    # Not importlib.util.find_spec, which returns the `__spec__` of a module that is imported already.
    path = getattr(sys.modules[parent], "__path__", None) if parent else None
    finders: list[Any] = [BuiltinImporter, FrozenImporter, PathFinder]
    finders += [finder for finder in sys.meta_path if _module_of(finder).startswith("__editable__")]
    for finder in finders:
        with contextlib.suppress(Exception):
            spec: ModuleSpec | None = finder.find_spec(name, path)
            if spec is not None:
                return spec
    return None


def _module_of(finder: Any) -> str:
    return str(getattr(finder, "__module__", None) or type(finder).__module__)


def _same_file(found: str | None, loaded: str) -> bool:
    if found is None:
        return False
    return found == loaded or os.path.realpath(found) == os.path.realpath(loaded)


def names_not_importable() -> tuple[bytes, ...]:
    """Return the names of all imported modules that a child process cannot import."""
    global _not_importable
    # A dict keeps its order: a new module is the last one.
    state = (len(sys.modules), next(reversed(sys.modules), None))
    if _not_importable[0] != state:
        imported = list(sys.modules.items())
        names = (name for name, module in imported if module is not None and not _is_importable_as(name, module))
        _not_importable = (state, tuple(name.encode() for name in names))
    return _not_importable[1]


def _is_importable_as(name: str, module: ModuleType) -> bool:
    # An alias is importable if the module it stands for is. An object that is not a module defines nothing.
    return not isinstance(module, ModuleType) or module.__name__ != name or is_importable(module)


def reference(function: Any) -> str | None:
    """Return the `module:path` under which a child process finds this very object; None if it does not.

    A function that a decorator replaced is found through its replacement, as `__wrapped__` or `fn`.
    """
    module_name = getattr(function, "__module__", None)
    path = getattr(function, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(path, str) or "<" in path:
        return None
    module = sys.modules.get(module_name)
    if module is None or not is_importable(module):
        return None
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
    if found is function:
        return f"{module_name}:{path}"
    for attribute in ("fn", "__wrapped__"):
        if getattr(found, attribute, None) is function:
            return f"{module_name}:{path}.{attribute}"
    return None
