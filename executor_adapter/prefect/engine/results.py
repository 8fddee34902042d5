"""The records of results as Prefect makes them, without the paths that it resolves again for each task run.

Prefect resolves the path of a result's file, and the folder of all results, several times a task run, each with a call
of the system for each part of the path: a sixth of all that a task costs. Where the folder is known, and the key is a
plain name as Prefect's keys are, the path follows from both.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import GeneratorType
from typing import Any

from prefect.client.schemas.objects import State
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata, ResultStore  # type: ignore[attr-defined]
from prefect.states import is_state_iterable


def as_record(value: Any, store: ResultStore, key: str | None) -> Any:
    """Return the record of a function's value under `key`, or the value itself where Prefect has to make the record."""
    if isinstance(value, State | GeneratorType | ResultRecord) or is_state_iterable(value):
        return value
    path = _path(store, store.storage_key_fn() if key is None else key)
    if path is None:
        return value
    return ResultRecord(result=value, metadata=ResultRecordMetadata(serializer=store.serializer, storage_key=path))


def is_surely_absent(store: ResultStore, key: str) -> bool:
    """Return whether `store` certainly has no record under `key`. It has to look itself otherwise."""
    path = _path(store, key) if store.metadata_storage is None else None
    return path is not None and not os.path.lexists(path)


def _path(store: ResultStore, key: str) -> str | None:
    """Return the path that Prefect would find for a result; None where that takes more than joining two names."""
    storage = store.result_storage
    if type(storage) is not LocalFileSystem or store.result_storage_block_id is not None or not _is_plain_name(key):
        return None
    folder = _resolved(storage.basepath or "")
    return None if folder is None else os.path.join(folder, key)


def _is_plain_name(key: object) -> bool:
    return isinstance(key, str) and key.replace("-", "").replace("_", "").isalnum()


@functools.lru_cache(maxsize=64)
def _resolved(basepath: str) -> str | None:
    path = Path(basepath).expanduser()
    return str(path.resolve()) if path.is_absolute() else None
