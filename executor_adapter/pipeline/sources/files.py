"""The source of files: of an installed package, a folder, or a store that fsspec reaches (s3://, gs://, abfs://).

Each file is a window by itself, so a new file is one more landing, and an unchanged one is not copied again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import islice, takewhile
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec

from executor_adapter.config import FilesTool, redacted
from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import explained
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.sources.landing import LandedFile, Landing, Window, find_landing, receiving
from executor_adapter.pipeline.sources.unpacking import bounded, chunks_of
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.terminal import escaped

UNFINISHED = (".part", ".tmp", ".filepart", ".crdownload")
"""How the names of files end that somebody is still writing. A pattern passes over them, and over hidden ones."""
_OTHERS = {"file", "local", "http", "https"}
"""Schemes that are described in another way."""


def find_files(tool: FilesTool, table: str) -> list[Window]:
    """Return a window for each file that the table's `file` means, in the order of their names.

    What a terminal would obey in a name, or not be able to show, is escaped in the name of the window.

    Raises:
        DataCollectionException: SOURCE_UNAVAILABLE, there is none (yet); CONFIGURATION_ERROR, NETWORK_ERROR or
            API_ERROR, see `error_codes`; DATA_ERROR, two names are the same when they are escaped.
    """
    place = _Place(tool, tool.tables[table].file)
    with _explained(str(place)):
        found = [Window(name=escaped(name), size=size) for name, size in place.files().items()]
    if not found:
        lack = "matches no file" if place.is_pattern else "does not exist"
        raise _error(f"{place} {lack}: wait until it is there, or correct tables.{table}.file", "SOURCE_UNAVAILABLE")
    if len({window.name for window in found}) < len(found):
        raise _error(f"{place}: the names of two files differ in control characters alone: rename one", "DATA_ERROR")
    return found


def land_file(table: ConfiguredTable, tool: FilesTool, window: Window) -> Landing:
    """Copy one file as it is into the landing, or return the landing that has it already.

    Args:
        table: the table.
        tool: where the files are.
        window: one of `find_files`.

    Raises:
        DataCollectionException: as `find_files`; CONFIGURATION_ERROR, it is not a file, or a link that leads out of the
            directory; DATA_ERROR, it is larger than `max_bytes`; COLLECTION_ERROR, it changed while it was copied.
    """
    place = _Place(tool, tool.tables[table.name].file)
    origin = f"{place.shown_root}/{window.name}"
    with _explained(origin), place.opened(window.name) as (file, size, version):
        before = version()
        existing = find_landing(table.lake, table.tool_name, table.name, window)
        # What was there before the newest content is not what is there again: it is newer now.
        if existing is not None and (
            existing.manifest.fingerprint == before or _has_content(file, size, existing.files[0])
        ):
            log("%s: not changed", origin)
            return existing
        # A version that is too new does not tell the next one from it: then the content does.
        is_settled = not isinstance(file, BufferedReader) or time.time() - os.fstat(file.fileno()).st_ctime >= MIN_AGE
        fingerprint = before if is_settled else f"{before}, new"
        with receiving(table.lake, table.tool_name, table.name, window, fingerprint=fingerprint) as receiver:
            receiver.restart()
            chunks = bounded(chunks_of(file), tool.max_bytes, f"{origin} has", "raise max_bytes", total=size)
            receiver.add(_suffixes(window.name), islice(chunks, 1 if window.is_sample else None), origin=origin)
            if version() != before:
                raise DataCollectionException(f"{origin} changed while it was copied: wait until it is whole")
    log("%s: %d bytes", origin, receiver.landing.files[0].size)
    return receiver.landing


def _has_content(file: IO[bytes], size: int | None, landed: LandedFile) -> bool:
    """Return whether a local file has the bytes that were landed: reinstalling a package changes its time alone."""
    if not isinstance(file, BufferedReader) or size != landed.size:
        return False
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found == landed.checksum


MIN_AGE = 2.0
"""Seconds after a change until the time of a local file tells a later change: clocks of disks are coarse."""


class _Place:
    """The files that a path, a pattern or a URL means."""

    def __init__(self, tool: FilesTool, file: str) -> None:
        self._tool = tool
        self._scheme = file.partition("://")[0] if "://" in file else ""
        self._folder = Path() if self._scheme else _folder(tool)
        if self._scheme:
            self._system, file = _system(tool, self._scheme, file)
        *folders, _ = parts = file.split("/")
        fixed = list(takewhile(lambda part: not _is_pattern(part), folders))
        self._root, self._pattern = str(self._folder / "/".join(fixed)), "/".join(parts[len(fixed) :])
        self.is_pattern = _is_pattern(self._pattern)

    def __str__(self) -> str:
        return escaped(f"{self.shown_root}/{self._pattern}")

    @property
    def shown_root(self) -> str:
        """The folder that the names of the files begin in, for people."""
        return f"{self._scheme}://{self._root}" if self._scheme else self._root

    def files(self) -> dict[str, int]:
        """Return the files, by their path below the root, in order, and the bytes of each; the most if none says it."""
        path = f"{self._root}/{self._pattern}"
        if not (self.is_pattern or self._exists(path)):
            return {}
        if not self.is_pattern:
            return {self._pattern: sys.maxsize if self._scheme else os.lstat(path).st_size}
        if self._scheme:
            objects = self._system.glob(path, detail=True).items()
            found = {each: said.get("size") or sys.maxsize for each, said in objects if said["type"] == "file"}
        else:
            found = {str(each): each.lstat().st_size for each in Path(self._root).glob(self._pattern) if each.is_file()}
        sizes = {each.removeprefix(self._root).lstrip("/"): size for each, size in found.items()}
        wanted = (each for each in sorted(sizes) if not each.endswith(UNFINISHED) and "/." not in f"/{each}")
        return {each: sizes[each] for each in wanted}

    @contextmanager
    def opened(self, name: str) -> Iterator[tuple[IO[bytes], int | None, Callable[[], str]]]:
        """Yield one of `files`, whose name may be escaped: the file, its bytes, and what gives its version."""
        path = f"{self._root}/{name}"
        if not self._exists(path):
            names = {escaped(each): each for each in self.files()}
            if name not in names:
                raise FileNotFoundError(name)
            path = f"{self._root}/{names[name]}"
        if self._scheme:
            with self._system.open(path, "rb") as file:
                yield file, self._system.size(path), lambda: _remote_content(self._system, path)
            return
        with self._open_local(Path(path)) as local:
            yield local, os.fstat(local.fileno()).st_size, lambda: _local_version(local)

    def _exists(self, path: str) -> bool:
        return bool(self._system.exists(path)) if self._scheme else os.path.lexists(path)

    def _open_local(self, path: Path) -> BufferedReader:
        real = path.resolve(strict=True)
        # The links of a package are made by what has installed it.
        if self._tool.package is None and not real.is_relative_to(self._folder.resolve()):
            raise _error(f"{path} leads out of {self._folder}: put the file itself there", "CONFIGURATION_ERROR")
        if not real.is_file():
            raise _error(f"{path} is not a file: name a file, or a pattern of files", "CONFIGURATION_ERROR")
        # Between the two somebody may have put a link or a FIFO there.
        return open(real, "rb", opener=lambda place, flags: os.open(place, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def _is_pattern(path: str) -> bool:
    return not {"*", "?", "["}.isdisjoint(path)


def _folder(tool: FilesTool) -> Path:
    if tool.directory is not None:
        return tool.directory
    spec = importlib.util.find_spec(tool.package or "")
    if spec is None or not spec.submodule_search_locations:
        raise _error(f"package {tool.package} is not installed: pip install {tool.package}", "CONFIGURATION_ERROR")
    return Path(spec.submodule_search_locations[0])


def _system(tool: FilesTool, scheme: str, url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and its path there."""
    if scheme in _OTHERS or "::" in url:
        way = "name a folder in `directory`, a web server by source: rest, or a store as in s3://bucket/*.csv"
        raise _error(f"{url} is not allowed: {way}", "CONFIGURATION_ERROR")
    try:
        system, path = fsspec.core.url_to_fs(url, **_options(tool))
    except (ImportError, ValueError) as error:
        raise _error(f"{url}: {error}", "CONFIGURATION_ERROR") from None
    return system, path


def _options(tool: FilesTool) -> dict[str, Any]:
    if tool.credential is None:
        return tool.storage
    secret = tool.credential.resolve().get_secret_value()
    return {
        name: value.replace("{credential}", secret) if isinstance(value, str) else value
        for name, value in tool.storage.items()
    }


def _local_version(file: BufferedReader) -> str:
    found = os.fstat(file.fileno())
    # Nobody sets the time of the last change, unlike that of the last write, which `cp -p` and rsync keep.
    return f"local {found.st_ino} {found.st_ctime_ns} {found.st_size}"


def _remote_content(system: Any, path: str) -> str:
    """Return what identifies the content of an object: what the server says of it."""
    system.invalidate_cache()
    return f"remote {system.ukey(path)}"


def _suffixes(path: str) -> str:
    """Return what the name says of the content: `.csv.gz` of `flights.2013.csv.gz`."""
    name = PurePosixPath(path)
    return (PurePosixPath(name.stem).suffix if name.suffix in {".gz", ".zip"} else "") + name.suffix


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Raise what a file system refuses with its code, as one line without control characters and secrets."""
    try:
        with explained(Path(place)):
            yield
    except FileNotFoundError:
        said = "does not exist: wait until it is there, or correct its path"
        raise _error(f"{place} {said}", "SOURCE_UNAVAILABLE") from None
    except DataCollectionException as error:
        raise _error(str(error), error_code_of(error)) from error.__cause__
    except Exception as error:
        raise _error(f"{place}: {type(error).__name__}: {error}", error_code_of(error)) from error


def _error(message: str, code: str) -> DataCollectionException:
    return DataCollectionException(escaped(redacted(message)), error_code=code)
