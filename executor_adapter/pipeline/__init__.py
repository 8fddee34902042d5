"""Building blocks for collecting and processing: sources are landed, read as text, typed by a schema, and stored.

    source --land--> landing --read--> rows of text --cast--> typed rows --stages--> lake
                                             └─── rejects ───────┴────────────┘

| step | module | gives |
| --- | --- | --- |
| land | `sources/` | the bytes as received, one file a page or source file, with a manifest: `Landing` |
| read | `sources/` | record batches in which every column is text, and rejects with line numbers: `text_rows` |
| cast | `schema` | rows with the types that the table's schema declares, and rejects with row numbers: `Caster` |

It needs the extra `pipeline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.pipeline.schema import CAST_REJECTS, Cast, Caster, cast_text, typed_schema
    from executor_adapter.pipeline.sources.files import find_files, land_file
    from executor_adapter.pipeline.sources.landing import (
        LandedFile,
        Landing,
        Manifest,
        Receiver,
        find_landing,
        read_landing,
        receiving,
    )
    from executor_adapter.pipeline.sources.reading import divide, read_rows
    from executor_adapter.pipeline.sources.windows import Window
    from executor_adapter.pipeline.text_rows import REJECTS, OnRejects, Reject

_HOMES = {
    "CAST_REJECTS": "executor_adapter.pipeline.schema",
    "Cast": "executor_adapter.pipeline.schema",
    "Caster": "executor_adapter.pipeline.schema",
    "cast_text": "executor_adapter.pipeline.schema",
    "typed_schema": "executor_adapter.pipeline.schema",
    "REJECTS": "executor_adapter.pipeline.text_rows",
    "LandedFile": "executor_adapter.pipeline.sources.landing",
    "Landing": "executor_adapter.pipeline.sources.landing",
    "Manifest": "executor_adapter.pipeline.sources.landing",
    "Receiver": "executor_adapter.pipeline.sources.landing",
    "OnRejects": "executor_adapter.pipeline.text_rows",
    "Reject": "executor_adapter.pipeline.text_rows",
    "Window": "executor_adapter.pipeline.sources.windows",
    "divide": "executor_adapter.pipeline.sources.reading",
    "find_files": "executor_adapter.pipeline.sources.files",
    "find_landing": "executor_adapter.pipeline.sources.landing",
    "land_file": "executor_adapter.pipeline.sources.files",
    "read_landing": "executor_adapter.pipeline.sources.landing",
    "read_rows": "executor_adapter.pipeline.sources.reading",
    "receiving": "executor_adapter.pipeline.sources.landing",
}

__all__ = [
    "CAST_REJECTS",
    "REJECTS",
    "Cast",
    "Caster",
    "LandedFile",
    "Landing",
    "Manifest",
    "OnRejects",
    "Receiver",
    "Reject",
    "Window",
    "cast_text",
    "divide",
    "find_files",
    "find_landing",
    "land_file",
    "read_landing",
    "read_rows",
    "receiving",
    "typed_schema",
]

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
