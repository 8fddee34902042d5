"""The modules of the program that a function reaches: a node runs them as the program has them, or not at all.

A program sends each such module once to an agent, and again when it has reloaded it with another source. Where the
node's own file of that name is another one, or there is none, workers import the module from what was sent, and so they
do where they may have imported an earlier one. Modules of installed packages are imported from the node.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import pickle
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

from executor_adapter.pools.cluster.program import FunctionOfProgram, Source
from executor_adapter.pools.transport.functions import EncodedFunction, forget_functions
from executor_adapter.pools.transport.importable import file_of_program, find_file, state_of_modules
from executor_adapter.worker.call import PICKLE, REFERENCE

_SHORT_TEXT = b"\x8c"
"""Stands in a pickle before a text of fewer than 256 bytes, and the byte that says how many."""

_sources: dict[str, tuple[object, Source]] = {}
"""The modules that were sent, by name, as they were imported: each with its spec, which a reload replaces."""


def forget_reloaded() -> None:
    """Let functions be encoded anew if the program has reloaded a module that was sent."""
    sent = list(_sources.items())
    if reloaded := [name for name, (spec, _) in sent if getattr(sys.modules.get(name), "__spec__", None) is not spec]:
        for name in reloaded:
            _sources.pop(name, None)
        forget_functions()


def pack(encoded: EncodedFunction) -> None:
    """Find the sources of the modules that a function reaches. Called on the submitter's thread."""
    if encoded.sources is None:
        modules = _modules_of_program(state_of_modules())
        encoded.sources = tuple(_reached(_roots(encoded.encoded, modules), modules))


@functools.lru_cache(maxsize=1)
def _modules_of_program(_state: tuple[int, int]) -> dict[str, tuple[ModuleType, str]]:
    """Return the imported modules of the program, each with its file, by name."""
    imported = [(name, module) for name, module in sys.modules.copy().items() if isinstance(module, ModuleType)]
    files = {name: (module, file_of_program(module)) for name, module in imported if module.__name__ == name}
    return {name: (module, file) for name, (module, file) in files.items() if file is not None}


def _roots(encoded: bytes, names: Iterable[str]) -> list[str]:
    """Return the modules that a reference or a pickle names."""
    if encoded[:1] == REFERENCE:
        return [encoded[1:].decode().partition(":")[0]]
    texts = {name: name.encode() for name in names if len(name) < 64}
    return [name for name, text in texts.items() if _SHORT_TEXT + bytes([len(text)]) + text in encoded]


def _reached(names: list[str], modules: Mapping[str, tuple[ModuleType, str]]) -> Iterator[Source]:
    """Yield the modules of the program among these, those that their `import` statements name, and so on."""
    seen: set[str] = set()
    while names:
        name = names.pop()
        if name in seen or name not in modules:
            continue
        seen.add(name)
        module, file = modules[name]
        if name not in ("__main__", "__mp_main__"):  # A function of theirs is sent by value.
            if (known := _sources.get(name)) is None:
                source = Source(name, file, _content_of(file), hasattr(module, "__path__"))
                known = _sources[name] = module.__spec__, source
            yield known[1]
            names += _imports_of(known[1])
        names.append(name.rpartition(".")[0])


@functools.lru_cache(maxsize=1024)
def _imports_of(source: Source) -> list[str]:
    """Return what the `import` statements of a module name, those in its functions too: some of it is no module."""
    package, names = source.name if source.is_package else source.name.rpartition(".")[0], []
    with contextlib.suppress(SyntaxError, ValueError, ImportError):  # It has no source, or one that was broken since.
        for node in ast.walk(ast.parse(source.content or b"")):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parent = resolve_name("." * node.level + (node.module or ""), package)
                names += [parent, *(f"{parent}.{alias.name}" for alias in node.names)]
    return names


def choose(encoded: bytes, numbers: Iterable[int], sent: Sequence[Source]) -> tuple[bytes, str]:
    """Return the function as a worker of this node is to decode it, and why it cannot run here, or "".

    `numbers`: the places in `sent` of the modules that it reaches.
    """
    versions = Counter(source.name for source in sent)
    sources = [sent[number] for number in numbers]
    lacking = []
    for source in sources:
        file, content = find_file(source.name), source.content
        if versions[source.name] > 1 or file is None or content is None or _content_of(file) != content:
            lacking.append(source)
            if content is None or not source.file.endswith(".py"):
                state = "is not on this node" if file is None else f"is another version on this node ({file})"
                return b"", f"the module {source.name} {state}: copy it there, since only sources can be sent"
    function = FunctionOfProgram([source.name for source in sources], lacking, encoded)
    return (PICKLE + pickle.dumps(function, 5) if lacking else encoded), ""


def _content_of(file: str) -> bytes | None:
    """Return what tells whether two files are the same: the text of a source, or a hash; None if it cannot be read."""
    with contextlib.suppress(OSError):
        content = Path(file).read_bytes()
        return content if file.endswith(".py") else hashlib.sha256(content).digest()
    return None
