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
    from executor_adapter.pipeline.collecting import (
        collect_window,
        collect_windows,
        find_windows,
        read_sample,
        rebuild_table,
    )
    from executor_adapter.pipeline.lake.layout import remove_leftovers
    from executor_adapter.pipeline.lake.table import LakeTable
    from executor_adapter.pipeline.lake.upkeep import expire_windows, is_expired, remove_windows, settle_windows
    from executor_adapter.pipeline.processing import (
        Balance,
        Processed,
        balance,
        balances,
        process_table,
        process_window,
        process_windows,
        reject_reasons,
    )
    from executor_adapter.pipeline.sources.files import find_files
    from executor_adapter.pipeline.sources.land import land
    from executor_adapter.pipeline.sources.landing import Landing, Window
    from executor_adapter.pipeline.sources.reading import read_rows
    from executor_adapter.pipeline.starter import write_starter
    from executor_adapter.pipeline.storing import Collected, store_landing
    from executor_adapter.pipeline.tables import ConfiguredTable, configured_tables, import_references, select_tables
    from executor_adapter.pipeline.text_rows import REJECTED
    from executor_adapter.pipeline.upkeep import rejected_rows, status_of

_NAMES = {
    ".collecting": "collect_window collect_windows find_windows read_sample rebuild_table",
    ".lake.layout": "remove_leftovers",
    ".lake.table": "LakeTable",
    ".lake.upkeep": "expire_windows is_expired remove_windows settle_windows",
    ".processing": "Balance Processed balance balances process_table process_window process_windows reject_reasons",
    ".sources.files": "find_files",
    ".sources.land": "land",
    ".sources.landing": "Landing Window",
    ".sources.reading": "read_rows",
    ".starter": "write_starter",
    ".storing": "Collected store_landing",
    ".tables": "ConfiguredTable configured_tables import_references select_tables",
    ".text_rows": "REJECTED",
    ".upkeep": "rejected_rows status_of",
}

__all__ = [
    "REJECTED",
    "Balance",
    "Collected",
    "ConfiguredTable",
    "LakeTable",
    "Landing",
    "Processed",
    "Window",
    "balance",
    "balances",
    "collect_window",
    "collect_windows",
    "configured_tables",
    "expire_windows",
    "find_files",
    "find_windows",
    "import_references",
    "is_expired",
    "land",
    "process_table",
    "process_window",
    "process_windows",
    "read_rows",
    "read_sample",
    "rebuild_table",
    "reject_reasons",
    "rejected_rows",
    "remove_leftovers",
    "remove_windows",
    "select_tables",
    "settle_windows",
    "status_of",
    "store_landing",
    "write_starter",
]

__getattr__, __dir__ = lazy_attributes(__name__, _NAMES)
