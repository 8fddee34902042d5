"""How a value travels: pickled, and where it is large, in a memory file beside its frame.

A value whose pickle is MIN_MEMORY_FILE_BYTES or longer travels as a memory file (memfd): its stream and its
out-of-band buffers (pickle protocol 5) one after another, passed as a descriptor with the frame, mapped privately on
arrival. There the objects are views on the mapping: only pages that are written to are copied, and the memory is free
when the last view is gone. The file has no name, so nothing is left whichever process dies.

Every worker imports this module, so it needs the standard library alone; cloudpickle is imported when something
cannot travel without it.
"""

from __future__ import annotations

import errno
import mmap
import os
import pickle
import resource
import struct
import sys
import weakref
from collections.abc import Callable
from typing import Any

MIN_MEMORY_FILE_BYTES = 1 << 19
"""Bytes from which on a value travels in a memory file."""
_LARGEST_FRAME = (1 << 32) - (1 << 20)
"""Bytes that travel without a memory file at most; a frame has room for some more."""
STACK_GLOBAL = b"\x93"
"""The opcode by which a pickle names code: one without it is plain data, whose loading cannot fail."""

_OUT_OF_BAND = 1 << 16
_ALIGNMENT = 64


class MemoryFile:
    """A value's pickle and buffers in a file without a name; closed when nobody refers to it any more."""

    __slots__ = ("__weakref__", "fd", "sizes")

    def __init__(self, fd: int, sizes: bytes) -> None:
        self.fd = fd
        self.sizes = sizes
        """What the receiver needs to find its way: the body of the frame."""
        weakref.finalize(self, _release, fd)


_open_files = 0
_may_be_open = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4) if hasattr(os, "memfd_create") else 0


def _release(fd: int) -> None:
    global _open_files
    _open_files -= 1
    os.close(fd)


def store(stream: bytes, buffers: list[pickle.PickleBuffer]) -> MemoryFile | None:
    """Write a value to a memory file; None where there is no room for another (its pickle then travels as it is)."""
    global _open_files
    if _open_files >= _may_be_open:
        # A queue of large jobs must not eat the descriptors that the program needs for itself. Elsewhere than on Linux
        # there are no memory files at all.
        return None
    try:
        fd = os.memfd_create("executor-adapter", os.MFD_CLOEXEC)
    except OSError:
        return None
    try:
        sizes = [_append(fd, memoryview(stream)), *(_append(fd, buffer.raw()) for buffer in buffers)]
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            return None
        raise
    _open_files += 1
    return MemoryFile(fd, struct.pack(f"<{len(sizes)}Q", *sizes))


def _append(fd: int, content: memoryview) -> int:
    rest = content
    while rest.nbytes:
        rest = rest[os.write(fd, rest) :]
    # Arrays of any type may be viewed only where they lie aligned.
    os.lseek(fd, -content.nbytes % _ALIGNMENT, os.SEEK_CUR)
    return content.nbytes


def load_from_file(fd: int, sizes: bytes) -> Any:
    """The value in the memory file `fd`, which is closed. Its buffers stay mapped while the value views them."""
    lengths = struct.unpack(f"<{len(sizes) // 8}Q", sizes)
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length + -length % _ALIGNMENT)
    try:
        content = _map(fd, offsets[-2] + lengths[-1])
    finally:
        os.close(fd)
    stream, *buffers = (content[at : at + length] for at, length in zip(offsets, lengths, strict=False))
    return pickle.loads(stream, buffers=buffers)


_mappings = 0


def _unmapped() -> None:
    global _mappings
    _mappings -= 1


def _map(fd: int, size: int) -> memoryview:
    global _mappings
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, trackfd=False))
    if _mappings < _may_be_open:
        # Until 3.13 a mapping keeps a descriptor of its own open.
        mapping = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE)
        _mappings += 1
        weakref.finalize(mapping, _unmapped)
        return memoryview(mapping)
    return _read(fd, size)


def _read(fd: int, size: int) -> memoryview:
    content = rest = memoryview(bytearray(size))
    while rest.nbytes:  # one call gives 2 GiB at most
        count = os.preadv(fd, [rest], size - rest.nbytes)
        if not count:  # else this would go on for ever; a mapping refuses it likewise
            raise ValueError(f"the file of a value is shorter than its {size} bytes")
        rest = rest[count:]
    return content


class Buffers:
    """The buffers of one value that are large enough to travel beside its pickle."""

    def __init__(self) -> None:
        self.kept: list[pickle.PickleBuffer] = []
        self.size = 0

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """The `buffer_callback` of a pickler: True leaves the buffer in the stream."""
        try:
            length = buffer.raw().nbytes
        except BufferError:  # not contiguous
            return True
        if length < _OUT_OF_BAND:
            return True
        self.kept.append(buffer)
        self.size += length
        return False

    def clear(self) -> None:
        """Another pickler begins anew."""
        self.kept.clear()
        self.size = 0


Dumps = Callable[[Any, Buffers | None], bytes]


def dump(value: Any, dumps: Dumps) -> tuple[bytes, MemoryFile | None]:
    """Pickle a value by `dumps`: the body of its frame, and the memory file to pass along, if it is large."""
    buffers = Buffers()
    stream = dumps(value, buffers)
    if len(stream) + buffers.size >= MIN_MEMORY_FILE_BYTES and (stored := store(stream, buffers.kept)) is not None:
        return stored.sizes, stored
    if len(stream) + buffers.size > _LARGEST_FRAME:
        raise ValueError(f"it is {len(stream) + buffers.size} bytes, more than travels in one piece: use a file")
    return (dumps(value, None) if buffers.kept else stream), None


def checked_dumps(value: Any, buffers: Buffers | None = None) -> bytes:
    """Pickle `value`, by value where it must be, and load it once if its pickle runs any code.

    A value whose loading fails, exits or crashes does so here, where it harms its own job alone.
    """
    try:
        stream = pickle.dumps(value, 5, buffer_callback=buffers)
    except Exception:
        stream = _dumps_by_value(value, buffers)
    if STACK_GLOBAL in stream:
        pickle.loads(stream, buffers=() if buffers is None else buffers.kept)
    return stream


def _dumps_by_value(value: Any, buffers: Buffers | None) -> bytes:
    import cloudpickle

    if buffers is not None:
        buffers.clear()
    return cloudpickle.dumps(value, protocol=5, buffer_callback=buffers)  # type: ignore[no-any-return]
