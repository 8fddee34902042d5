"""Functions in a form that a node can load which may lack the program's files, or have other ones.

A function of an installed package goes by reference. One of the program's own modules goes by reference with the hash
of its module's file, and by value. The agent takes the reference if its own file of that name has the same hash, so
that a node never runs another version of the code; otherwise it takes the value.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from executor_adapter.exceptions.display import text_of
from executor_adapter.job import resolve
from executor_adapter.pools.transport.functions import EncodedFunction, dump_with_program
from executor_adapter.pools.transport.importable import file_of_program, find_file
from executor_adapter.worker import PICKLE, REFERENCE, wire

_DIGEST_SIZE = hashlib.sha256().digest_size


class Portable(NamedTuple):
    """A function of the program, as it is sent to an agent."""

    reference: str
    digest: bytes
    """The hash of the file of its module."""
    by_value: bytes
    """The pickle of the function; empty if it cannot be pickled."""
    refusal: str
    """Why it cannot be pickled."""


def pack(encoded: EncodedFunction, function: Callable[..., Any] | str) -> None:
    """Prepare a function to be sent to agents. Called on the submitter's thread."""
    if encoded.portable is None:
        is_reference = encoded.encoded[:1] == REFERENCE and not encoded.once
        encoded.portable = _pack(encoded.encoded[1:].decode(), resolve(function)) if is_reference else b""


def _pack(reference: str, function: Callable[..., Any]) -> bytes:
    file = file_of_program(sys.modules[reference.partition(":")[0]])
    if file is None:
        return b""
    by_value, refusal = b"", ""
    try:
        by_value = dump_with_program(function)
    except Exception as error:
        refusal = text_of(error)
    parts = (reference.encode(), by_value, refusal.encode())
    sizes = wire.CALL_SIZES.pack(*map(len, parts))
    return b"".join((sizes, digest_of(file), *parts))


def unpack(body: bytes) -> Portable:
    """Return the function that an agent has received."""
    sizes = wire.CALL_SIZES.unpack_from(body)
    at = wire.CALL_SIZES.size + _DIGEST_SIZE
    parts = []
    for size in sizes:
        parts.append(body[at : at + size])
        at += size
    digest = body[wire.CALL_SIZES.size : wire.CALL_SIZES.size + _DIGEST_SIZE]
    return Portable(parts[0].decode(), digest, parts[1], parts[2].decode())


def choose(portable: Portable) -> tuple[bytes, str]:
    """Return the function as a worker of this node is to decode it, and why there is no such form, or ""."""
    module = portable.reference.partition(":")[0]
    file = find_file(module)
    if file is not None and digest_of(file) == portable.digest:
        return REFERENCE + portable.reference.encode(), ""
    if portable.by_value:
        return PICKLE + portable.by_value, ""
    state = "is not on this node" if file is None else f"is another version on this node ({file})"
    why = f"the module {module} {state}, and {portable.reference} cannot be sent by value: {portable.refusal}"
    return b"", f"{why}: copy the program's files there, or change the function"


def digest_of(file: str) -> bytes:
    """Return the hash of a file's content."""
    status = Path(file).stat()
    return _digest(file, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1024)
def _digest(file: str, mtime_ns: int, size: int) -> bytes:
    return hashlib.sha256(Path(file).read_bytes()).digest()
