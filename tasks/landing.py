"""Collection: copies one window of a source into the lake. Plain functions; each is the body of a job.

All are idempotent. A window is not collected again while its partition is complete and its source is unchanged; the
function then returns `{"records_collected": 0, "status": "already_collected", "rows": n}`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from executor_adapter.config import FilesTool, RestTool
from executor_adapter.exceptions import DataCollectionException
from tasks import lake, sources
from tasks.http_client import client_for
from tasks.job_log import log, progress

Result = dict[str, Any]


def find_windows(tool_name: str, tool: FilesTool, table: str) -> dict[str, int]:
    """Return the windows in a table's file, each with its number of rows."""
    windows = sources.count_windows(tool, tool.tables[table])
    log("%s: rows: %d, windows: %d", tool.tables[table].file, sum(windows.values()), len(windows))
    return windows


def collect_window(tool_name: str, tool: FilesTool, table: str, window: str, root: Path) -> Result:
    """Copy the rows of one window of the table's file into the lake at `root`."""
    partition = lake.Partition(lake=root, layer="raw", tool=tool_name, table=table, window=window)
    fingerprint = sources.fingerprint(tool, tool.tables[table])
    existing = lake.find_manifest(partition, fingerprint)
    if existing is not None:
        log("%s: %d rows, already collected", partition, existing.rows)
        return _result(0, existing.rows)
    rows = sources.read_window(tool, tool.tables[table], window)
    with lake.writing(partition, fingerprint=fingerprint) as writer:
        writer.add(rows)
    log("%s: %d rows from %s", partition, rows.num_rows, tool.tables[table].file)
    return _result(rows.num_rows, rows.num_rows)


def collect_resource(
    tool_name: str, tool: RestTool, table: str, root: Path, headers: Mapping[str, str], now: datetime | None = None
) -> Result:
    """Copy the objects of a resource into the lake, one partition for each UTC day from `tool.days` ago until `now`.

    A day that was over when it was collected is not requested again; to any other day the new objects are added.
    `headers` are sent with each request; the tool's own headers override them.
    """
    now = now or datetime.now(UTC)
    collected = total = 0
    with client_for(tool, dict(headers)) as client:
        api = sources.Api(tool=tool, client=client, on_page=lambda count, resource: progress(count, None, resource))
        for day in sources.days_until(now, tool.days):
            new, rows = _collect_day(tool_name, api, table, day, root, over=day.is_over(now))
            collected, total = collected + new, total + rows
    return _result(collected, total)


def _collect_day(
    tool_name: str, api: sources.Api, table: str, day: sources.Day, root: Path, *, over: bool
) -> tuple[int, int]:
    """Collect one day; return the number of new objects and of all objects."""
    partition = lake.Partition(lake=root, layer="raw", tool=tool_name, table=table, window=day.name)
    resource = api.tool.resources[table]
    description = json.dumps(resource.model_dump(), sort_keys=True)
    definition = hashlib.sha256(description.encode()).hexdigest()[:16]
    existing = lake.find_manifest(partition, f"{definition} whole")
    if existing is not None:
        log("%s: %d objects, already collected", partition, existing.rows)
        return 0, existing.rows
    parents = frozenset[str]() if resource.for_each is None else _collected_values(partition, "parent_id")
    rows = sources.to_table(api.objects(table, day, parents))
    with lake.writing(partition, fingerprint=f"{definition} {'whole' if over else 'so far'}") as writer:
        before = writer.previous()
        merged = _merge(before, rows, resource.key)
        writer.add(merged)
    new = merged.num_rows - (0 if before is None else before.num_rows)
    log("%s: %d new objects, %d in total, from %s%s", partition, new, merged.num_rows, api.tool.url, resource.path)
    return new, merged.num_rows


def _collected_values(partition: lake.Partition, column: str) -> frozenset[str]:
    """Return the values of a column that the partition already holds."""
    if lake.find_manifest(partition) is None:
        return frozenset()
    rows = lake.read(partition)
    return frozenset(rows[column].to_pylist()) if column in rows.column_names else frozenset()


def _merge(before: pa.Table | None, rows: pa.Table, key: str) -> pa.Table:
    """Return all rows with each key once; the newer object wins, because a run may have been run again."""
    if before is None or before.num_rows == 0:
        return rows
    if rows.num_rows == 0:
        return before
    old = before.filter(pc.invert(pc.is_in(before[key], rows[key].combine_chunks())))
    try:
        return pa.concat_tables([old, rows], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataCollectionException(f"the objects have changed their type: {error}", "DATA_ERROR") from error


def _result(collected: int, rows: int) -> Result:
    return {
        "records_collected": collected,
        "status": "already_collected" if rows and not collected else "success",
        "rows": rows,
    }
