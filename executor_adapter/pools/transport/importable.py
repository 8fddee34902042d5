"""Decides which modules and functions a child process can import as this process has them.

A function is sent by reference only if the child process finds the same file under the same name. It does not find:
`__main__`, a module that was loaded from a file under a name of the loader's choice, a module made at run time, and a
module that another file on the path now hides.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pkgutil
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import BuiltinImporter, FrozenImporter, ModuleSpec, PathFinder
from pathlib import Path
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

_NEVER_IMPORTABLE = ("__main__", "__mp_main__")
_LIBRARY_FOLDERS = frozenset({"site-packages", "dist-packages"})
_OWN_PACKAGE = __name__.partition(".")[0]
_LOADER_PREFIX = "__prefect_loader_"
"""Prefix of the names of modules that Prefect loaded from a file; they are in no directory of the path."""


def current_path() -> list[str]:
    """Return sys.path in a form that another process can use: an empty entry means this process's working directory."""
    with contextlib.suppress(OSError):  # The directory is gone.
        return [os.path.abspath(entry) if isinstance(entry, str) else entry for entry in sys.path]
    return list(sys.path)


_results: dict[str, tuple[ModuleType, bool]] = {}
_not_importable: tuple[tuple[int, int], tuple[bytes, ...]] = ((-1, -1), ())
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
    spec = _find_spec(name, getattr(sys.modules[parent], "__path__", None) if parent else None)
    if spec is None:
        return False
    file = getattr(module, "__file__", None)
    return spec.origin in ("built-in", "frozen") or file is None or _same_file(spec.origin, file)


def _find_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    # Not importlib.util.find_spec, which returns the `__spec__` of a module that is imported already.
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
    return found == loaded or (found is not None and os.path.realpath(found) == os.path.realpath(loaded))


def file_of_program(module: ModuleType) -> str | None:
    """Return the file of a module of the program itself; None for one of Python, of a package, or without a file."""
    file: str | None = getattr(module, "__file__", None)
    name = module.__name__.partition(".")[0]
    if file is None or name == _OWN_PACKAGE or name in sys.stdlib_module_names or is_in_library(file):
        return None
    return os.path.abspath(file)


@functools.lru_cache(maxsize=4096)
def is_in_library(place: str) -> bool:
    """Return whether a path is in the standard library or in an installed package."""
    path = Path(place).resolve()
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    return bool(_LIBRARY_FOLDERS.intersection(path.parts)) or any(path.is_relative_to(folder) for folder in standard)


def find_file(name: str) -> str | None:
    """Return the file that would be imported as the module `name`, without importing anything."""
    top, *parts = name.split(".")
    spec = _find_spec(top, None)
    for part in parts:
        if spec is None or spec.submodule_search_locations is None:
            return None
        top = f"{top}.{part}"
        spec = _find_below(top, list(spec.submodule_search_locations))
    return str(spec.origin) if spec is not None and spec.has_location else None


def _find_below(name: str, path: Sequence[str]) -> ModuleSpec | None:
    """Find a module in a package that is not imported: PathFinder needs that for packages without an `__init__`."""
    portions: list[str] = []
    for entry in path:
        finder = pkgutil.get_importer(entry)
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec
        portions += [] if spec is None else spec.submodule_search_locations or ()
    if not portions:
        return None
    package = ModuleSpec(name, None, is_package=True)
    package.submodule_search_locations = portions
    return package


def state_of_modules() -> tuple[int, int]:
    """Return what changes with each import: how many modules there are, and the identity of the newest."""
    while True:
        with contextlib.suppress(RuntimeError):  # Another thread has just imported one.
            return len(sys.modules), id(next(reversed(sys.modules.values())))


def names_not_importable() -> tuple[bytes, ...]:
    """Return the names of all imported modules that a child process cannot import."""
    global _not_importable
    if _not_importable[0] != (state := state_of_modules()):
        # An alias is importable if the module it stands for is; an object that is not a module defines nothing.
        modules = [(name, each) for name, each in sys.modules.copy().items() if isinstance(each, ModuleType)]
        names = [name for name, each in modules if each.__name__ == name and not is_importable(each)]
        _not_importable = (state, tuple(name.encode() for name in names))
    return _not_importable[1]


def importable_reference(function: Any) -> str | None:
    """Return the `module:path` under which a child process finds this very object; None if it does not.

    A function that a decorator replaced is found through its replacement, as `__wrapped__` or `fn`. A method is found
    where a library holds it, as `random.randint`: a child process has an object of its own for it.
    """
    module_name = getattr(function, "__module__", None)
    reference = _find_reference(function, module_name, getattr(function, "__qualname__", None))
    if reference is None and isinstance(function, MethodType | BuiltinMethodType):
        name = type(function.__self__).__module__
        if name in sys.modules and file_of_program(sys.modules[name]) is None:
            return _find_reference(function, name, function.__name__)
    return reference


def _find_reference(function: Any, module_name: object, path: object) -> str | None:
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
