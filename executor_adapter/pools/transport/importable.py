"""What another process finds by import, as this one has it.

A function may go by reference only where the child will find the same file under the same name. Modules that it would
not find: `__main__`, those that were loaded from a file under a name of their loader's choice, those made by hand, and
those that another file on the path now hides.
"""

from __future__ import annotations

import contextlib
import os
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_NEVER_FOUND = ("__main__", "__mp_main__")
_LOADER_PREFIX = "__prefect_loader_"
"""Modules that a workflow engine loaded from a file are named so, and live in no directory of the path."""


def current_path() -> list[str]:
    """sys.path as another process can use it: an empty entry means the directory this one is in."""
    return [os.path.abspath(entry) if isinstance(entry, str) else entry for entry in sys.path]


_judged: dict[str, tuple[ModuleType, bool]] = {}
_hidden: tuple[tuple[int, str | None], tuple[bytes, ...]] = ((-1, None), ())


def is_found(module: ModuleType) -> bool:
    """Whether a child that has our sys.path would import the same file under the module's name."""
    name = getattr(module, "__name__", None)
    if not isinstance(name, str) or sys.modules.get(name) is not module:
        return False
    known = _judged.get(name)
    if known is None or known[0] is not module:
        known = _judged[name] = (module, _judge(name, module))
    return known[1]


def _judge(name: str, module: ModuleType) -> bool:
    if name in _NEVER_FOUND or name.startswith(_LOADER_PREFIX):
        return False
    parent, _, _ = name.rpartition(".")
    if parent and not (parent in sys.modules and is_found(sys.modules[parent])):
        return False
    spec = _find_spec(name, parent)
    if spec is None:
        return False
    file = getattr(module, "__file__", None)
    return spec.origin in ("built-in", "frozen") or file is None or _same_file(spec.origin, file)


def _find_spec(name: str, parent: str) -> ModuleSpec | None:
    # Not importlib.util.find_spec: of a module that is imported already it gives the module's own word.
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


def hidden_names() -> tuple[bytes, ...]:
    """The names of all imported modules that a child would not find."""
    global _hidden
    # Dicts keep their order: a new module is the last one.
    state = (len(sys.modules), next(reversed(sys.modules), None))
    if _hidden[0] != state:
        imported = list(sys.modules.items())
        names = (name for name, module in imported if module is not None and not _findable(name, module))
        _hidden = (state, tuple(name.encode() for name in names))
    return _hidden[1]


def _findable(name: str, module: ModuleType) -> bool:
    # An alias is found if what it stands for is; objects that are no modules do not define anything.
    return not isinstance(module, ModuleType) or module.__name__ != name or is_found(module)


def reference(function: Any) -> str | None:
    """`module:path` under which a child finds this very object; None where it does not.

    A function that a decorator replaced is found through what replaced it, as its `__wrapped__` or `fn`.
    """
    module_name = getattr(function, "__module__", None)
    path = getattr(function, "__qualname__", None)
    if not isinstance(module_name, str) or not isinstance(path, str) or "<" in path:
        return None
    module = sys.modules.get(module_name)
    if module is None or not is_found(module):
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
