"""The source of functions: your own, or sources of dlt. Their objects are landed as text, a Parquet file a batch.

A retry calls the function anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from executor_adapter.config import FunctionTable, FunctionTool
from executor_adapter.pipeline.errors import data_error
from executor_adapter.pipeline.importing import import_object
from executor_adapter.pipeline.sources.landing import Landing, Window, land_batches
from executor_adapter.pipeline.tables import ConfiguredTable
from executor_adapter.pipeline.text_rows import as_text, batch_of, check_names, text_array


def land_function(table: ConfiguredTable, tool: FunctionTool, window: Window) -> Landing:
    """Call the function of a table, and land the objects that it gives.

    The function returns an iterable of mappings, of lists of mappings (pages), or of Arrow tables and batches. A
    parameter `since` or `until` is given the bound of the window.

    Args:
        table: the table.
        tool: its tool.
        window: the window.

    Raises:
        ConfigurationError: there is no such function.
        DataCollectionException: DATA_ERROR, it gives something else. Or what the function raises.
    """
    described = tool.tables[table.name]
    name = described.function
    batches = _batches(_call(described, window), name, tool.batch_rows)
    asked = [name, described.arguments, window.since, window.until]
    return land_batches(table, window, asked, batches, name)


def _call(described: FunctionTable, window: Window) -> Iterable[Any]:
    function: Callable[..., Iterable[Any]] = import_object(described.function, "function")
    bounds = {"since": window.since, "until": window.until}
    taken = inspect.signature(function).parameters
    arguments = {name: value for name, value in bounds.items() if name in taken} | described.arguments
    return function(**arguments)


def _batches(given: Iterable[Any], name: str, batch_rows: int) -> Iterator[pa.RecordBatch]:
    rows: list[Mapping[str, Any]] = []
    for item in given:
        if isinstance(item, pa.Table | pa.RecordBatch):
            check_names(item.schema.names, name)
            yield from map(as_text, item.to_batches() if isinstance(item, pa.Table) else [item])
            continue
        for each in item if isinstance(item, list) else [item]:
            if not isinstance(each, Mapping) or not each:
                raise data_error(f"{name} gave {type(each).__name__}: give mappings with keys, or Arrow")
            rows.append(each)
        while len(rows) >= batch_rows:
            yield batch_of(rows[:batch_rows], text_array, name)
            del rows[:batch_rows]
    if rows:
        yield batch_of(rows, text_array, name)
