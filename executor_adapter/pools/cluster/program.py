"""Imports modules of the program in a worker from their sources, where its node has none of them or other ones.

Workers import this module, so it needs nothing but what they have.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, NamedTuple

from executor_adapter.worker.call import decode_function


class Source(NamedTuple):
    """A module of the program."""

    name: str
    file: str
    content: bytes | None
    """Its source, or where it has none a hash of its file; None if that cannot be read."""
    is_package: bool


class FunctionOfProgram:
    """Is unpickled as a function, once its modules can be imported from `sources`.

    `names`: all modules of the program that it reaches. `encoded`: the function itself.
    """

    def __init__(self, names: list[str], sources: list[Source], encoded: bytes) -> None:
        self._parts = names, [tuple(source) for source in sources], encoded

    def __reduce__(self) -> tuple[Any, ...]:
        return load, self._parts


class _Finder(SourceLoader):
    """Finds and loads the modules that were sent, before those of the node."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        source = self.sources.get(name)
        if source is None and not any(each.startswith(f"{name}.") for each in self.sources):
            return None
        of_node = PathFinder.find_spec(name, path)
        if source is None and of_node is not None:
            return of_node
        loader: Any = None if source is None else self
        is_package, file = source is None or source.is_package, source and source.file
        spec = ModuleSpec(name, loader, origin=file, is_package=is_package)
        spec.has_location = source is not None
        if spec.submodule_search_locations is not None and of_node is not None:
            spec.submodule_search_locations += of_node.submodule_search_locations or ()
        return spec

    def get_filename(self, fullname: str) -> str:
        return self.sources[fullname].file

    def get_data(self, path: str | bytes) -> bytes:
        return next(source.content or b"" for source in self.sources.values() if source.file == path)


_finder = _Finder()


def load(names: list[str], sources: list[tuple[Any, ...]], encoded: bytes) -> Any:
    """Return a function that was sent as a reference or a pickle, with its modules from `sources`."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    new = [source for source in map(Source._make, sources) if _finder.sources.get(source.name) != source]
    _finder.sources.update((source.name, source) for source in new)
    if any(source.name in sys.modules for source in new):
        for name in names:  # Others hold what they have imported of it.
            parent, _, child = name.rpartition(".")
            sys.modules.pop(name, None)
            vars(sys.modules.get(parent, _finder)).pop(child, None)
    return decode_function(encoded)
