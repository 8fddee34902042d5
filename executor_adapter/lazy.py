"""Packages whose names are loaded when first used (PEP 562): every worker process imports some, and needs little."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_attributes(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return the `__getattr__`, `__dir__` and `__all__` of `package`.

    Its names are those that it imports for type checkers alone, each in a line `from module import name as name`. They
    are read from its source, so that each is written once.
    """
    module: Any = sys.modules[package]
    lines = module.__loader__.get_data(module.__file__).decode().splitlines()
    imports = (line.split() for line in lines if line.startswith("    from ") and " as " in line)
    homes = {name: home for _, home, _, _, _, name in imports}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(module), *homes})

    return get, list_names, list(homes)
