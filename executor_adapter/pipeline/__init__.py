"""Building blocks for collecting and processing: sources are landed, read as text, typed by a schema, and stored.

    source --land--> landing --read--> rows of text --cast--> typed rows --stages--> lake
                                             └─── rejects ───────┴────────────┘

| step | module | gives |
| --- | --- | --- |
| land | `sources/` | the bytes as received, one file a page or source file, with a manifest: `Landing` |
| read | `sources/` | record batches in which every column is text, and rejects with line numbers: `text_rows` |

It needs the extra `pipeline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.pipeline.sources.landing import (
        LandedFile,
        Landing,
        Manifest,
        Receiver,
        find_landing,
        read_landing,
        receiving,
    )
    from executor_adapter.pipeline.sources.windows import Window
    from executor_adapter.pipeline.text_rows import REJECTS, Reject

_HOMES = {
    "REJECTS": "executor_adapter.pipeline.text_rows",
    "LandedFile": "executor_adapter.pipeline.sources.landing",
    "Landing": "executor_adapter.pipeline.sources.landing",
    "Manifest": "executor_adapter.pipeline.sources.landing",
    "Receiver": "executor_adapter.pipeline.sources.landing",
    "Reject": "executor_adapter.pipeline.text_rows",
    "Window": "executor_adapter.pipeline.sources.windows",
    "find_landing": "executor_adapter.pipeline.sources.landing",
    "read_landing": "executor_adapter.pipeline.sources.landing",
    "receiving": "executor_adapter.pipeline.sources.landing",
}

__all__ = [
    "REJECTS",
    "LandedFile",
    "Landing",
    "Manifest",
    "Receiver",
    "Reject",
    "Window",
    "find_landing",
    "read_landing",
    "receiving",
]

__getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
