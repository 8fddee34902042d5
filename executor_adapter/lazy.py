"""Packages whose names are loaded when first used (PEP 562): every worker process imports some, and needs little."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_attributes(package: str, names: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the `__getattr__` and `__dir__` of `package`.

    `names` has what each module gives, with spaces between: `name`, or `name:other` where it is called `other` there. A
    module whose path begins with a dot is one of the package.
    """
    homes = {
        name.partition(":")[0]: (module, name.rpartition(":")[2])
        for module, each in names.items()
        for name in each.split()
    }

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, inner_name = homes[name]
        value = getattr(importlib.import_module(module, package), inner_name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return get, list_names
