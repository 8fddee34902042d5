"""Building blocks for collecting and processing: sources are landed, read as text, typed by a schema, and stored.

    source --land--> landing --read--> rows of text --cast--> typed rows --steps----> lake
                                             └─── rejects ───────┴────────────┘

| step | module | gives |
| --- | --- | --- |
| land | `sources/` | the bytes as received, one file a page or source file, with a manifest: `Landing` |
| read | `sources/` | rows in which every column is text, and rejects with line numbers: `Text` |
| load | `loading`, `casts` | rows with the types that the table's schema declares, by window, and rejects: `Loader` |
| store | `lake/`, `storing` | Parquet in whole windows, which every reader reads: `LakeTable`, `store_landing` |
| process | `steps`, `processing` | steps over whole windows, with an account of each row: `process_window` |

| configure | `tables`, `collecting`, `processing`, `upkeep` | the same for the tables of `config.yaml` |
| run | `flows/` | flows of Prefect that do all of it, with a report |

It needs the extra `pipeline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.pipeline.collecting import collect_window, find_windows, rebuild_table
    from executor_adapter.pipeline.lake.footers import WindowEntry
    from executor_adapter.pipeline.lake.layout import remove_leftovers
    from executor_adapter.pipeline.lake.table import LakeTable
    from executor_adapter.pipeline.lake.upkeep import (
        expire_windows,
        is_expired,
        remove_windows,
        settle_windows,
    )
    from executor_adapter.pipeline.lake.writer import Writer, Written
    from executor_adapter.pipeline.loading import CAST_REJECTS, Loaded, Loader
    from executor_adapter.pipeline.processing import (
        Balance,
        Processed,
        balance,
        process_table,
        process_window,
        reject_reasons,
    )
    from executor_adapter.pipeline.sources.files import find_files, land_file
    from executor_adapter.pipeline.sources.functions import land_function
    from executor_adapter.pipeline.sources.land import land
    from executor_adapter.pipeline.sources.landing import (
        LandedFile,
        Landing,
        Manifest,
        Receiver,
        find_landing,
        read_landing,
        receiving,
    )
    from executor_adapter.pipeline.sources.reading import read_rows, read_texts
    from executor_adapter.pipeline.sources.rest.resource import land_resource
    from executor_adapter.pipeline.sources.sql import land_query
    from executor_adapter.pipeline.sources.windows import Window
    from executor_adapter.pipeline.starter import write_starter
    from executor_adapter.pipeline.steps import Step, read_step
    from executor_adapter.pipeline.storing import Collected, store_landing
    from executor_adapter.pipeline.tables import ConfiguredTable, configured_tables, import_references, select_tools
    from executor_adapter.pipeline.text_rows import REJECTS, OnRejects, Reject, Text, connected
    from executor_adapter.pipeline.upkeep import clean_lake, keep_table, settle_table

_HOMES = {
    "write_starter": "executor_adapter.pipeline.starter",
    "ConfiguredTable": "executor_adapter.pipeline.tables",
    "configured_tables": "executor_adapter.pipeline.tables",
    "select_tools": "executor_adapter.pipeline.tables",
    "import_references": "executor_adapter.pipeline.tables",
    "find_windows": "executor_adapter.pipeline.collecting",
    "collect_window": "executor_adapter.pipeline.collecting",
    "rebuild_table": "executor_adapter.pipeline.collecting",
    "process_table": "executor_adapter.pipeline.processing",
    "Balance": "executor_adapter.pipeline.processing",
    "balance": "executor_adapter.pipeline.processing",
    "reject_reasons": "executor_adapter.pipeline.processing",
    "keep_table": "executor_adapter.pipeline.upkeep",
    "settle_table": "executor_adapter.pipeline.upkeep",
    "clean_lake": "executor_adapter.pipeline.upkeep",
    "Collected": "executor_adapter.pipeline.storing",
    "store_landing": "executor_adapter.pipeline.storing",
    "Step": "executor_adapter.pipeline.steps",
    "read_step": "executor_adapter.pipeline.steps",
    "Processed": "executor_adapter.pipeline.processing",
    "process_window": "executor_adapter.pipeline.processing",
    "LakeTable": "executor_adapter.pipeline.lake.table",
    "WindowEntry": "executor_adapter.pipeline.lake.footers",
    "Written": "executor_adapter.pipeline.lake.writer",
    "Writer": "executor_adapter.pipeline.lake.writer",
    "remove_leftovers": "executor_adapter.pipeline.lake.layout",
    "expire_windows": "executor_adapter.pipeline.lake.upkeep",
    "is_expired": "executor_adapter.pipeline.lake.upkeep",
    "remove_windows": "executor_adapter.pipeline.lake.upkeep",
    "settle_windows": "executor_adapter.pipeline.lake.upkeep",
    "CAST_REJECTS": "executor_adapter.pipeline.loading",
    "Loaded": "executor_adapter.pipeline.loading",
    "Loader": "executor_adapter.pipeline.loading",
    "REJECTS": "executor_adapter.pipeline.text_rows",
    "LandedFile": "executor_adapter.pipeline.sources.landing",
    "Landing": "executor_adapter.pipeline.sources.landing",
    "Manifest": "executor_adapter.pipeline.sources.landing",
    "Receiver": "executor_adapter.pipeline.sources.landing",
    "OnRejects": "executor_adapter.pipeline.text_rows",
    "Reject": "executor_adapter.pipeline.text_rows",
    "Window": "executor_adapter.pipeline.sources.windows",
    "read_texts": "executor_adapter.pipeline.sources.reading",
    "Text": "executor_adapter.pipeline.text_rows",
    "connected": "executor_adapter.pipeline.text_rows",
    "find_files": "executor_adapter.pipeline.sources.files",
    "find_landing": "executor_adapter.pipeline.sources.landing",
    "land_resource": "executor_adapter.pipeline.sources.rest.resource",
    "land": "executor_adapter.pipeline.sources.land:land",
    "land_function": "executor_adapter.pipeline.sources.functions",
    "land_query": "executor_adapter.pipeline.sources.sql",
    "land_file": "executor_adapter.pipeline.sources.files",
    "read_landing": "executor_adapter.pipeline.sources.landing",
    "read_rows": "executor_adapter.pipeline.sources.reading",
    "receiving": "executor_adapter.pipeline.sources.landing",
}

__all__ = [
    "CAST_REJECTS",
    "REJECTS",
    "Balance",
    "Collected",
    "ConfiguredTable",
    "LakeTable",
    "LandedFile",
    "Landing",
    "Loaded",
    "Loader",
    "Manifest",
    "OnRejects",
    "Processed",
    "Receiver",
    "Reject",
    "Step",
    "Text",
    "Window",
    "WindowEntry",
    "Writer",
    "Written",
    "balance",
    "clean_lake",
    "collect_window",
    "configured_tables",
    "connected",
    "expire_windows",
    "find_files",
    "find_landing",
    "find_windows",
    "import_references",
    "is_expired",
    "keep_table",
    "land",
    "land_file",
    "land_function",
    "land_query",
    "land_resource",
    "process_table",
    "process_window",
    "read_landing",
    "read_rows",
    "read_step",
    "read_texts",
    "rebuild_table",
    "receiving",
    "reject_reasons",
    "remove_leftovers",
    "remove_windows",
    "select_tools",
    "settle_table",
    "settle_windows",
    "store_landing",
    "write_starter",
]

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
