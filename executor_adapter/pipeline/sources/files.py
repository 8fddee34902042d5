"""The source of files: of an installed package, a folder, or anywhere that fsspec reaches (s3://, gs://, abfs://).

Each file is a window by itself, so a new file is one more landing, and an unchanged one is not copied again.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import fsspec

from executor_adapter.config import FilesTool
from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import checksum_of, explained
from executor_adapter.pipeline.job_log import log, progress
from executor_adapter.pipeline.sources.landing import Landing, find_landing, receiving
from executor_adapter.pipeline.sources.unpacking import CHUNK
from executor_adapter.pipeline.sources.windows import Window

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}
_GLOB = frozenset("*?[")


def find_files(tool: FilesTool, table: str) -> list[Window]:
    """Return a window for each file that the table's `file` means, in the order of their names.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, there is none; NETWORK_ERROR or API_ERROR, see `error_codes`.
    """
    pattern, root = _pattern(tool, table), _root(tool, table)
    system, path = _system(tool, pattern)
    with _explained(pattern):
        is_pattern = bool(_GLOB & set(path))
        found = sorted(system.glob(path)) if is_pattern else [path] if system.exists(path) else []
        found = [each for each in found if not is_pattern or system.isfile(each)]
    if not found:
        lack = "matches no file" if is_pattern else "does not exist"
        raise _configuration_error(f"{pattern} {lack}: correct tables.{table}.file, or create the file")
    return [Window(name=_relative(each, root)) for each in found]


def land_file(root: Path, tool_name: str, tool: FilesTool, table: str, window: Window) -> Landing:
    """Copy one file as it is into the landing, or return the landing that has it already.

    Args:
        root: the folder of the lake.
        tool_name: the name of the tool.
        tool: where the files are.
        table: the table.
        window: one of `find_files`.

    Raises:
        DataCollectionException: as `find_files`; COLLECTION_ERROR, the file changed while it was copied.
    """
    place = _place(tool, table, window)
    system, path = _system(tool, place)
    with _explained(place):
        fingerprint = _fingerprint(system, path)
        existing = find_landing(root, tool_name, table, window, fingerprint)
        if existing is not None:
            log("%s: not changed", place)
            return existing
        with receiving(root, tool_name, table, window, fingerprint=fingerprint) as receiver:
            receiver.restart()
            with system.open(path, "rb") as file:
                receiver.add(_suffixes(path), _chunks(cast(IO[bytes], file), system.size(path)), origin=place)
            if _fingerprint(system, path) != fingerprint:
                raise DataCollectionException(f"{place} changed while it was copied: wait until it is whole")
    landing = find_landing(root, tool_name, table, window, fingerprint)
    assert landing is not None
    log("%s: %d bytes", place, landing.files[0].size)
    return landing


def _pattern(tool: FilesTool, table: str) -> str:
    file = tool.tables[table].file
    return file if "://" in file else str(_folder(tool) / file)


def _folder(tool: FilesTool) -> Path:
    if tool.directory is not None:
        return tool.directory
    spec = importlib.util.find_spec(tool.package or "")
    if spec is None or not spec.submodule_search_locations:
        raise _configuration_error(f"package {tool.package} is not installed: pip install {tool.package}")
    return Path(spec.submodule_search_locations[0])


def _root(tool: FilesTool, table: str) -> str:
    """Return the part of the pattern's path before its first wildcard, up to a folder."""
    pattern = _pattern(tool, table)
    path = _system(tool, pattern)[1]
    before = path[: next((place for place, char in enumerate(path) if char in _GLOB), len(path))]
    return before.rpartition("/")[0]


def _relative(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/")


def _place(tool: FilesTool, table: str, window: Window) -> str:
    pattern = _pattern(tool, table)
    scheme = pattern.partition("://")[0] + "://" if "://" in pattern else ""
    return f"{scheme}{_root(tool, table)}/{window.name}"


def _system(tool: FilesTool, place: str) -> tuple[Any, str]:
    """Return the file system of a path or URL, and its path there."""
    scheme = place.partition("://")[0] if "://" in place else "file"
    try:
        system, path = fsspec.core.url_to_fs(place, **_options(tool))
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        hint = f"pip install 'prefect-executor-adapter[{extra}]'" if extra else str(error)
        raise _configuration_error(f"{scheme}:// needs a package that is not installed: {hint}") from None
    except ValueError as error:
        raise _configuration_error(f"{place}: {error}") from None
    return system, path


def _options(tool: FilesTool) -> dict[str, Any]:
    if tool.credential is None:
        return tool.storage
    secret = tool.credential.resolve().get_secret_value()
    return {
        name: value.replace("{credential}", secret) if isinstance(value, str) else value
        for name, value in tool.storage.items()
    }


def _fingerprint(system: Any, path: str) -> str:
    """Return what identifies the content: the checksum of a local file, else what the server says of it."""
    if "file" in (system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)):
        # Not the time: reinstalling a package changes the time of its files and not what is in them.
        return f"sha256 {checksum_of(Path(path))}"
    system.invalidate_cache()
    info = system.info(path)
    said = {
        key: str(info[key]) for key in ("size", "ETag", "etag", "content_md5", "md5Hash", "LastModified") if key in info
    }
    return "remote " + hashlib.sha256(repr(sorted(said.items())).encode()).hexdigest()


def _chunks(file: IO[bytes], size: int | None) -> Iterator[bytes]:
    done = 0
    while chunk := file.read(CHUNK):
        yield chunk
        done += len(chunk)
        progress(done, size, "bytes")


def _suffixes(path: str) -> str:
    """Return what the name says of the content: `.csv.gz` of `flights.2013.csv.gz`."""
    name = PurePosixPath(path)
    return (PurePosixPath(name.stem).suffix if name.suffix in {".gz", ".zip"} else "") + name.suffix


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Raise what a file system refuses with its code, as one line."""
    try:
        with explained(Path(place)):
            yield
    except FileNotFoundError:
        raise _configuration_error(f"{place} does not exist: correct its path, or create it") from None
    except DataCollectionException:
        raise
    except Exception as error:
        raise DataCollectionException(
            f"{place}: {type(error).__name__}: {error}", error_code=error_code_of(error)
        ) from error


def _configuration_error(message: str) -> DataCollectionException:
    return DataCollectionException(message, error_code="CONFIGURATION_ERROR")
