"""Encodes values for a frame: pickled, and if large, in a memory file that is sent beside the frame.

A value whose pickle is MIN_MEMORY_FILE_BYTES or longer travels as a memory file (memfd): its stream and its
out-of-band buffers (pickle protocol 5) one after another, passed as a descriptor with the frame, mapped privately on
arrival. There the objects are views on the mapping: only pages that are written to are copied, and the memory is free
when the last view is gone. The file has no name, so nothing is left behind, whichever process dies.

Every worker imports this module, so it needs the standard library alone. cloudpickle is imported only for a value that
plain pickle cannot write.
"""

from __future__ import annotations

import errno
import io
import itertools
import mmap
import os
import pickle
import resource
import struct
import sys
import weakref
from collections.abc import Callable
from numbers import Integral
from typing import Any

MIN_MEMORY_FILE_BYTES = 1 << 19
"""A value of this many bytes or more travels in a memory file."""
_MAX_FRAME_BYTES = (1 << 32) - (1 << 20)
"""A value of more bytes needs a memory file; a frame has room for slightly more."""
STACK_GLOBAL = b"\x93"
"""The opcode by which a pickle refers to code. A pickle without it is plain data, which always loads."""

_MIN_BUFFER_BYTES = 1 << 16
"""A buffer of this many bytes or more is stored beside the pickle instead of in it."""
_ALIGNMENT = 64


class MemoryFile:
    """Holds a value's pickle and buffers in a file without a name. It is closed when this object is collected."""

    __slots__ = ("__weakref__", "_close", "_content", "fd", "sizes")

    def __init__(self, fd: int, sizes: bytes) -> None:
        self.fd = fd
        self.sizes = sizes
        """The packed sizes of the parts, for the receiver: the body of the frame."""
        global _open_files
        _open_files += 1
        self._close = weakref.finalize(self, _close_file, fd)
        self._close.atexit = False  # At the interpreter's end it may still have to be sent.
        self._content: memoryview | None = None

    def spare_descriptor(self) -> None:
        """Read the file into memory and close it, if so many are open that the program may need the descriptor."""
        if _open_files > MAX_OPEN_FILES:
            self._content = _read(self.fd, os.fstat(self.fd).st_size)
            self._close()

    def load(self) -> Any:
        """Load the value. The buffers stay mapped while the value views them."""
        lengths = struct.unpack(f"<{len(self.sizes) // 8}Q", self.sizes)
        starts = [0, *itertools.accumulate(length + -length % _ALIGNMENT for length in lengths)]
        content = self._content or _map(self.fd, starts[-2] + lengths[-1])
        stream, *buffers = (content[at : at + length] for at, length in zip(starts, lengths, strict=False))
        return pickle.loads(stream, buffers=buffers)


_open_files = 0
MAX_OPEN_FILES = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4) if hasattr(os, "memfd_create") else 0
"""Memory files, and mappings that hold a descriptor, that this process may have open; 0 if it has no memory files."""


def _close_file(fd: int) -> None:
    global _open_files
    _open_files -= 1
    os.close(fd)


def write_memory_file(stream: bytes, buffers: list[pickle.PickleBuffer]) -> MemoryFile | None:
    """Write a value to a memory file. Return None if no further one can be made: the frame then holds the pickle."""
    if _open_files >= MAX_OPEN_FILES:
        # A queue of large jobs must not use up the descriptors that the program needs. Only Linux has memory files.
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
    return MemoryFile(fd, struct.pack(f"<{len(sizes)}Q", *sizes))


def _append(fd: int, content: memoryview) -> int:
    rest = content
    while rest.nbytes:
        rest = rest[os.write(fd, rest) :]
    # An array can be viewed only at an aligned address.
    os.lseek(fd, -content.nbytes % _ALIGNMENT, os.SEEK_CUR)
    return content.nbytes


_mappings = 0
"""Mappings that hold a descriptor (before Python 3.13)."""


def _count_unmapped() -> None:
    global _mappings
    _mappings -= 1


def _map(fd: int, size: int) -> memoryview:
    global _mappings
    if sys.version_info >= (3, 13):
        return memoryview(mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, trackfd=False))
    if _mappings < MAX_OPEN_FILES:
        # Before Python 3.13 a mapping keeps a descriptor of its own open.
        mapping = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE)
        _mappings += 1
        weakref.finalize(mapping, _count_unmapped)
        return memoryview(mapping)
    return _read(fd, size)


def _read(fd: int, size: int) -> memoryview:
    content = rest = memoryview(bytearray(size))
    while rest.nbytes:  # One call reads at most 2 GiB.
        if not (count := os.preadv(fd, [rest], size - rest.nbytes)):  # A mapping raises a ValueError too.
            raise ValueError(f"the memory file of a value is shorter than its {size} bytes")
        rest = rest[count:]
    return content


class LargeBuffers(list[pickle.PickleBuffer]):
    """Collects the buffers of one value that are large enough to be stored beside its pickle."""

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """Act as the `buffer_callback` of a pickler: return True to leave the buffer in the pickle."""
        try:
            length = buffer.raw().nbytes
        except BufferError:  # The buffer is not contiguous.
            return True
        if length < _MIN_BUFFER_BYTES:
            return True
        self.append(buffer)
        return False


Dumps = Callable[[Any, LargeBuffers | None], bytes]
"""A function that pickles a value, and passes large buffers to a LargeBuffers if given one."""


def dump(value: Any, dumps: Dumps) -> tuple[bytes, MemoryFile | None]:
    """Pickle a value with `dumps`. Return the body of its frame, and the memory file to send with it if it is large."""
    buffers = LargeBuffers()
    stream = dumps(value, buffers)
    size = len(stream) + sum(buffer.raw().nbytes for buffer in buffers)
    if size >= MIN_MEMORY_FILE_BYTES and (stored := write_memory_file(stream, buffers)) is not None:
        return stored.sizes, stored
    if size > _MAX_FRAME_BYTES:
        raise ValueError(f"it is {size} bytes, more than one frame can hold: write it to a file and pass the path")
    return (dumps(value, None) if buffers else stream), None


def checked_dumps(value: Any, buffers: LargeBuffers | None = None) -> bytes:
    """Pickle `value`, with cloudpickle if plain pickle fails, and load it once if its pickle runs any code.

    If loading the value fails, exits or crashes, it does so here, where only its own job is harmed.
    """
    stream = dumps(value, buffers)
    if STACK_GLOBAL in stream:
        pickle.loads(stream, buffers=buffers)
    return stream


def dumps(value: Any, buffers: LargeBuffers | None = None) -> bytes:
    """Pickle `value`, with cloudpickle if plain pickle fails: it may be of a class of the program's main module."""
    try:
        return pickle.dumps(value, 5, buffer_callback=buffers)
    except Exception:
        return _dumps_by_value(value, buffers)


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def load_plain(pickled: bytes) -> tuple[Any, bytes]:
    """Load plain data: texts, numbers and bytes, in tuples, lists and dicts. No code of anybody runs.

    Return it, and what follows its pickle.

    Raises:
        pickle.UnpicklingError: it is something else.
    """
    stream = io.BytesIO(pickled)
    return _PlainUnpickler(stream).load(), stream.read()


def records_in(value: dict[Any, Any]) -> int | None:
    """Return the number of collected or processed records that a function's result states."""
    for key in ("records_collected", "records_processed"):
        count: Any = value.get(key)
        # NumPy's integers are not ints. No other class is asked whether it is a number: it may not be sent as one.
        if type(count) is int or (type(count).__module__ == "numpy" and issubclass(type(count), Integral)):
            return int(count)
    return None


def _dumps_by_value(value: Any, buffers: LargeBuffers | None) -> bytes:
    import cloudpickle

    if buffers is not None:
        buffers.clear()
    return cloudpickle.dumps(value, protocol=5, buffer_callback=buffers)  # type: ignore[no-any-return]
