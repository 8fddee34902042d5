"""Collection: what a source holds of one window, landed in the lake once. Plain functions, each the body of a job.

Each is idempotent: a window whose partition is complete, and whose source has not changed since, is not collected
again, and the function says so: `{"records_collected": 0, "status": "already_collected", "rows": n}`.
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

from executor_adapter.config.settings import FilesTool, RestTool
from executor_adapter.exceptions import DataCollectionException
from tasks import lake, sources
from tasks.job_log import log, progress

Result = dict[str, Any]


def find_windows(tool_name: str, tool: FilesTool, table: str) -> dict[str, int]:
    """The windows of a table in a file of `tool_name`, each with its number of rows."""
    windows = sources.windows_of(tool, tool.tables[table])
    log("%s: rows: %d, windows: %d", tool.tables[table].file, sum(windows.values()), len(windows))
    return windows


def collect_window(tool_name: str, tool: FilesTool, table: str, window: str, root: Path) -> Result:
    """Land the rows that the file of `table` holds of `window` in the lake at `root`."""
    partition = lake.Partition(lake=root, layer="raw", tool=tool_name, table=table, window=window)
    fingerprint = sources.fingerprint(tool, tool.tables[table])
    found = lake.complete(partition, fingerprint)
    if found is not None:
        log("%s: %d rows, collected before", partition, found.rows)
        return _result(0, found.rows)
    rows = sources.read_window(tool, tool.tables[table], window)
    with lake.writing(partition, fingerprint=fingerprint) as writer:
        writer.add(rows)
    log("%s: %d rows of %s", partition, rows.num_rows, tool.tables[table].file)
    return _result(rows.num_rows, rows.num_rows)


def collect_resource(
    tool_name: str, tool: RestTool, table: str, root: Path, headers: Mapping[str, str], now: datetime | None = None
) -> Result:
    """Land the objects of a resource, a partition for each UTC day from `tool.days` ago until `now`.

    A day that was over when it was collected is not asked for again; of another one, what is new is added to what is
    there. `headers` are sent with each request, the tool's own winning.
    """
    now = now or datetime.now(UTC)
    collected = total = 0
    with sources.client_for(tool, dict(headers)) as client:
        api = sources.Api(tool=tool, client=client, said=lambda count, resource: progress(count, None, resource))
        for day in sources.days_until(now, tool.days):
            new, rows = _collect_day(tool_name, api, table, day, root, over=day.is_over(now))
            collected, total = collected + new, total + rows
    return _result(collected, total)


def _collect_day(
    tool_name: str, api: sources.Api, table: str, day: sources.Day, root: Path, *, over: bool
) -> tuple[int, int]:
    """How many objects of the day are new, and how many there are."""
    partition = lake.Partition(lake=root, layer="raw", tool=tool_name, table=table, window=day.name)
    resource = api.tool.resources[table]
    described = json.dumps(resource.model_dump(), sort_keys=True)
    definition = hashlib.sha256(described.encode()).hexdigest()[:16]
    found = lake.complete(partition, f"{definition} whole")
    if found is not None:
        log("%s: %d objects, collected before", partition, found.rows)
        return 0, found.rows
    parents = frozenset[str]() if resource.for_each is None else _known(partition, "parent_id")
    rows = sources.as_table(api.objects(table, day, parents))
    with lake.writing(partition, fingerprint=f"{definition} {'whole' if over else 'so far'}") as writer:
        before = writer.previous()
        merged = _merged(before, rows, resource.key)
        writer.add(merged)
    new = merged.num_rows - (0 if before is None else before.num_rows)
    log("%s: new objects: %d, in all: %d, from %s%s", partition, new, merged.num_rows, api.tool.url, resource.path)
    return new, merged.num_rows


def _known(partition: lake.Partition, column: str) -> frozenset[str]:
    """The values of a column that are there already."""
    if lake.complete(partition) is None:
        return frozenset()
    rows = lake.read(partition)
    return frozenset(rows[column].to_pylist()) if column in rows.column_names else frozenset()


def _merged(before: pa.Table | None, rows: pa.Table, key: str) -> pa.Table:
    """Both, each key once: of an object that is there already the newer wins, since a run may have been run again."""
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
