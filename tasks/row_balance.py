"""What the lake holds of a tool, counted in the files themselves and not taken from what the jobs said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks import lake, rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Where the collected rows of a tool are; `unprocessed`: in partitions whose processing did not succeed."""

    tool: str
    collected: int
    processed: int
    rejected: int
    unprocessed: int

    @property
    def holds(self) -> bool:
        return self.collected == self.processed + self.rejected + self.unprocessed

    def __str__(self) -> str:
        rest = f" + {self.unprocessed:,} not processed" if self.unprocessed else ""
        sign = "=" if self.holds else "≠"
        return (
            f"{self.tool}: {self.collected:,} collected {sign} "
            f"{self.processed:,} processed + {self.rejected:,} rejected{rest}"
        )


def balance(root: Path, tool: str, schemas: dict[str, str | None]) -> Balance:
    """Count the rows of a tool's tables (name -> schema) in the files themselves."""
    counts = dict.fromkeys(("collected", "processed", "rejected", "unprocessed"), 0)
    for raw in raw_partitions(root, tool, schemas):
        rows = lake.count(raw)
        counts["collected"] += rows
        if lake.complete(raw.at("processed"), fingerprint(raw, schemas[raw.table])) is None:
            counts["unprocessed"] += rows
            continue
        counts["processed"] += lake.count(raw.at("processed"))
        counts["rejected"] += lake.count(raw.at("rejects"))
    return Balance(tool=tool, **counts)


def raw_partitions(root: Path, tool: str, tables: Iterable[str]) -> list[lake.Partition]:
    """The complete raw partitions of a tool's tables: what is to be processed."""
    every = (partition for table in tables for partition in lake.partitions(root, "raw", tool, table))
    return [partition for partition in every if lake.complete(partition) is not None]


def fingerprint(raw: lake.Partition, schema: str | None) -> str:
    """What tells the result of processing `raw` by these rules from any other.

    Raises:
        DataProcessingException: DATA_ERROR, the partition is not complete.
    """
    manifest = lake.complete(raw)
    if manifest is None:
        raise lake.incomplete(raw)
    return f"{manifest.checksum} {schema or 'as it is'} {rules.VERSION}"
