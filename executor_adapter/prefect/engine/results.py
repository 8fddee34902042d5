"""The result store of a task run, without the paths that Prefect's resolves again for each task run.

Prefect resolves the path of a result's file, and the folder of all results, several times a task run, each with a call
of the system for each part of the path: a sixth of all that a task costs. Where the folder is known, and the key is a
plain name as Prefect's keys are, the path follows from both.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata, ResultStore  # type: ignore[attr-defined]


class JobResultStore(ResultStore):
    """Does what Prefect's does, and asks that one where it takes more than joining two names."""

    @classmethod
    def like(cls, store: ResultStore) -> JobResultStore:
        """Return a store with the same storage, serializer, locks and cache."""
        return cls.model_construct(store.model_fields_set, **vars(store))

    def exists(self, key: str) -> bool:
        """Return whether there is a record under `key`."""
        path = self._path_of(key) if self.metadata_storage is None else None
        return (path is None or os.path.lexists(path)) and super().exists(key)

    def create_result_record(self, obj: Any, key: str | None = None, expiration: Any = None) -> ResultRecord[Any]:
        """Make the record of a value, without writing it."""
        key = key or self.storage_key_fn()
        path = self._path_of(key)
        if path is None:
            return super().create_result_record(obj, key, expiration)
        metadata = ResultRecordMetadata(serializer=self.serializer, expiration=expiration, storage_key=path)
        return ResultRecord(result=obj, metadata=metadata)

    def _path_of(self, key: str) -> str | None:
        storage = self.result_storage
        if type(storage) is not LocalFileSystem or self.result_storage_block_id is not None or not _is_plain_name(key):
            return None
        folder = _resolved(storage.basepath or "")
        return None if folder is None else os.path.join(folder, key)


def _is_plain_name(key: object) -> bool:
    return isinstance(key, str) and key.replace("-", "").replace("_", "").isalnum()


@functools.lru_cache(maxsize=64)
def _resolved(basepath: str) -> str | None:
    path = Path(basepath).expanduser()
    return str(path.resolve()) if path.is_absolute() else None
