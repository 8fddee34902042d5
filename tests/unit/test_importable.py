"""Which modules a child process can import, asked while other threads import some."""

from __future__ import annotations

import sys
from collections.abc import Iterator, ValuesView
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from executor_adapter.pools.cluster.program import Source, load
from executor_adapter.pools.transport import importable


class Modules(dict[str, ModuleType]):
    """Imported modules, to which another thread adds one while this thread is about to look at the newest."""

    def values(self) -> Any:
        return _Newest(super().values(), self)


class _Newest:
    def __init__(self, values: ValuesView[ModuleType], modules: Modules) -> None:
        self._values, self._modules = values, modules

    def __reversed__(self) -> Iterator[ModuleType]:
        found = reversed(self._values)
        self._modules.setdefault("made_meanwhile", ModuleType("made_meanwhile"))
        return found


def test_another_thread_may_import_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is among those that a child process cannot import, and nothing fails."""
    modules = Modules(sys.modules)
    monkeypatch.setattr(importable, "sys", SimpleNamespace(modules=modules, meta_path=sys.meta_path))
    assert b"made_meanwhile" in importable.names_not_importable()
    monkeypatch.undo()
    assert b"made_meanwhile" not in importable.names_not_importable()


def test_a_module_that_was_sent_is_compiled_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The annotations of a module that a node imports from its source are those that it has in the program."""
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    text = b"class Row:\n    number: int\ndef annotation():\n    return Row.__annotations__['number']\n"
    source = Source("sent_with_annotations", "sent_with_annotations.py", text, is_package=False)
    annotation = load([source.name], [source], b"Rsent_with_annotations:annotation")
    del sys.modules[source.name]
    assert annotation() is int
