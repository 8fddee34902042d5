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
    from executor_adapter.pipeline.collecting import collect_window as collect_window
    from executor_adapter.pipeline.collecting import collect_windows as collect_windows
    from executor_adapter.pipeline.collecting import find_windows as find_windows
    from executor_adapter.pipeline.collecting import land as land
    from executor_adapter.pipeline.collecting import read_sample as read_sample
    from executor_adapter.pipeline.collecting import rebuild_table as rebuild_table
    from executor_adapter.pipeline.lake.table import LakeTable as LakeTable
    from executor_adapter.pipeline.lake.table import remove_windows as remove_windows
    from executor_adapter.pipeline.processing import Balance as Balance
    from executor_adapter.pipeline.processing import balance as balance
    from executor_adapter.pipeline.processing import balances as balances
    from executor_adapter.pipeline.processing import process_window as process_window
    from executor_adapter.pipeline.processing import process_windows as process_windows
    from executor_adapter.pipeline.processing import reject_reasons as reject_reasons
    from executor_adapter.pipeline.processing import windows_to_process as windows_to_process
    from executor_adapter.pipeline.sources.files import find_files as find_files
    from executor_adapter.pipeline.sources.landing import Landing as Landing
    from executor_adapter.pipeline.sources.landing import Window as Window
    from executor_adapter.pipeline.sources.reading import read_rows as read_rows
    from executor_adapter.pipeline.starter import write_starter as write_starter
    from executor_adapter.pipeline.steps import Processed as Processed
    from executor_adapter.pipeline.storing import Collected as Collected
    from executor_adapter.pipeline.storing import store_landing as store_landing
    from executor_adapter.pipeline.tables import ConfiguredTable as ConfiguredTable
    from executor_adapter.pipeline.tables import configured_tables as configured_tables
    from executor_adapter.pipeline.tables import import_references as import_references
    from executor_adapter.pipeline.tables import processing_order as processing_order
    from executor_adapter.pipeline.tables import select_tables as select_tables
    from executor_adapter.pipeline.text_rows import REJECTED as REJECTED
    from executor_adapter.pipeline.upkeep import expire_windows as expire_windows
    from executor_adapter.pipeline.upkeep import rejected_rows as rejected_rows
    from executor_adapter.pipeline.upkeep import remove_leftovers as remove_leftovers
    from executor_adapter.pipeline.upkeep import settle_windows as settle_windows
    from executor_adapter.pipeline.upkeep import status_of as status_of

__getattr__, __dir__, __all__ = lazy_attributes(__name__)
