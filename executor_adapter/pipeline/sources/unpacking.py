"""Landed bytes as a plain file: taken out of ZIP and gzip, and in UTF-8, so that readers need not know of either."""

from __future__ import annotations

import codecs
import gzip
import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, BinaryIO, cast

from executor_adapter.pipeline.disk import TEMPORARY, explained
from executor_adapter.pipeline.errors import configuration_error, data_error
from executor_adapter.pipeline.job_log import progress

CHUNK = 1 << 20
"""Bytes that are copied at a time."""
MAX_UNPACKED = 100 << 30
"""Bytes of an unpacked file, at most: more are taken for an archive that is made to fill the disk."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF8 = {"utf-8", "utf-8-sig", "ascii"}


@contextmanager
def unpacked(path: Path, *, max_bytes: int = MAX_UNPACKED) -> Iterator[tuple[Path, str]]:
    """Yield a file with the content of `path`, and its name; a temporary one where that is a ZIP or gzip archive.

    Args:
        path: the landed file; its first bytes say what it is.
        max_bytes: bytes of the content, at most.

    Raises:
        DataCollectionException: DATA_ERROR, the archive is broken, encrypted or too large, or has not exactly one file.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] != b"\x1f\x8b" and not start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield path, path.name
        return
    name = path.name.removesuffix(".gz")
    with temporary(path) as plain:
        try:
            if start[:2] == b"\x1f\x8b":
                with gzip.open(path) as source:
                    _copy(path, cast(IO[bytes], source), plain, max_bytes)
            else:
                with zipfile.ZipFile(path) as archive:
                    names = [each.filename for each in archive.infolist() if not each.is_dir()]
                    if len(names) != 1:
                        raise data_error(f"{path}: the archive has {len(names)} files: pack one alone")
                    (name,) = names
                    with archive.open(name) as source:
                        _copy(path, source, plain, max_bytes)
        except (zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # It is the disk's; that of a broken bzip2 has no number.
            raise data_error(f"{path}: the archive is broken: {error}") from error
        except (RuntimeError, NotImplementedError) as error:  # What zipfile raises for a password, or a compression.
            raise data_error(f"{path}: {error}: unpack it where it is made") from None
        yield Path(plain.name), name


@contextmanager
def as_utf8(path: Path, encoding: str | None) -> Iterator[tuple[Path, str]]:
    """Yield a file with the text of `path` in UTF-8, without a byte order mark that is not UTF-8's; and its encoding.

    Bytes that are not of the encoding stay as they are, so that the reader rejects their line alone.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, the encoding is unknown; DATA_ERROR, the text is not of it.
    """
    with path.open("rb") as file:
        start = file.read(4)
    found = encoding or next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    try:
        codec = codecs.lookup(found)
        b" ".decode(found, "ignore")  # There are encodings, such as hex, that are none of text.
    except (LookupError, ValueError):
        raise configuration_error(f"encoding: {found!r} is not an encoding: write for example latin-1") from None
    if codec.name in _UTF8:
        yield path, codec.name
        return
    with temporary(path) as plain:
        try:
            with path.open(encoding=found, errors="surrogateescape", newline="") as text:
                while chunk := text.read(CHUNK):
                    plain.write(chunk.encode("utf-8", "surrogateescape"))
        except UnicodeError as error:
            raise data_error(f"{path}: the text is not {found}: {error}: set encoding") from error
        plain.flush()
        yield Path(plain.name), codec.name


@contextmanager
def temporary(beside: Path) -> Iterator[BinaryIO]:
    """Open a file beside another one, which is removed when the block ends."""
    with explained(beside), tempfile.NamedTemporaryFile(dir=beside.parent, prefix=TEMPORARY) as file:
        yield cast(BinaryIO, file)


def bounded(
    chunks: Iterable[bytes], limit: int, said: str, way: str, *, total: int | None = None, unit: str = "bytes"
) -> Iterator[bytes]:
    """Yield chunks as they come, and report how many bytes came, of `total` where that is known.

    Raises:
        DataCollectionException: DATA_ERROR, there are more bytes than `limit`: what `said` begins, and the `way` out.
    """
    done = 0
    for chunk in chunks:
        done += len(chunk)
        if max(done, total or 0) > limit:
            raise data_error(f"{said} more than {limit:,} bytes: {way}")
        progress(done, total, unit)
        yield chunk


def chunks_of(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the bytes of an open file."""
    return iter(partial(file.read, CHUNK), b"")


def _copy(path: Path, source: IO[bytes], plain: BinaryIO, max_bytes: int) -> None:
    chunks = bounded(chunks_of(source), max_bytes, f"{path}: unpacks to", "raise max_bytes", unit="bytes unpacked")
    plain.writelines(chunks)
    plain.flush()
