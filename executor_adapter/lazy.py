"""Packages whose names are loaded when first used (PEP 562): every worker process imports some, and needs little."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_attributes(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of `package`.

    `homes` has the home of each name: its module, "module:name" where it is called otherwise there, or itself where it
    is a module.
    """

    def get(name: str) -> Any:
        home = homes.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        path, _, inner_name = home.partition(":")
        module = importlib.import_module(path)
        value = module if path == f"{package}.{name}" else getattr(module, inner_name or name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, list_names
