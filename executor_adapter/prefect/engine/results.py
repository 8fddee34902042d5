"""The keys and records of results as Prefect makes them, without what it computes again for each task run.

**Paths.** Prefect resolves the path of a result's file, and the folder of all results, several times a task run, each
with a call of the system for each part of the path: a sixth of all that a task costs. Where the folder is known, and
the key is a plain name as Prefect's keys are, the path follows from both.

**Keys.** Of a cache policy that combines others, the part for the task's source is the same for all its runs.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from types import GeneratorType
from typing import Any

from prefect.cache_policies import CachePolicy, CompoundCachePolicy, TaskSource
from prefect.client.schemas.objects import State
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultRecord, ResultRecordMetadata, ResultStore  # type: ignore[attr-defined]
from prefect.states import is_state_iterable
from prefect.utilities.hashing import hash_objects


@dataclasses.dataclass
class KnownSource(TaskSource):
    """Computes the key of TaskSource once for each source."""

    def compute_key(self, task_ctx: Any, inputs: Any, flow_parameters: Any, **kwargs: Any) -> str | None:
        """Return the key of TaskSource."""
        source = getattr(task_ctx.task, "source_code", None)
        if source is None:
            return super().compute_key(task_ctx, inputs, flow_parameters, **kwargs)
        return _hash_of(source)


@functools.lru_cache(maxsize=256)
def _hash_of(source: str) -> str | None:
    return hash_objects(source, raise_on_failure=True)


def with_known_source(policy: CachePolicy) -> CachePolicy | None:
    """Return a policy that computes the keys of `policy` with less work; None if there is none."""
    if type(policy) is not CompoundCachePolicy or not any(type(each) is TaskSource for each in policy.policies):
        return None
    parts = [KnownSource() if type(each) is TaskSource else each for each in policy.policies]
    return CompoundCachePolicy(policies=parts)


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
