"""Counts the rows of a tool in the files of the lake, independent of what the jobs reported: kept, and why not kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks import lake, rules, stages


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The number of a tool's rows by where they are now.

    `unprocessed` rows are in partitions whose processing did not succeed.
    """

    tool: str
    collected: int
    processed: int
    rejected: int
    unprocessed: int

    @property
    def holds(self) -> bool:
        """Whether every collected row is accounted for."""
        return self.collected == self.processed + self.rejected + self.unprocessed

    def __str__(self) -> str:
        rest = f" + {self.unprocessed:,} not processed" if self.unprocessed else ""
        sign = "=" if self.holds else "≠"
        return (
            f"{self.tool}: {self.collected:,} collected {sign} "
            f"{self.processed:,} processed + {self.rejected:,} rejected{rest}"
        )


def balance(root: Path, tool: str, schemas: dict[str, str | None]) -> Balance:
    """Count the rows of a tool's tables (name -> schema) in the files of the lake."""
    counts = dict.fromkeys(("collected", "processed", "rejected", "unprocessed"), 0)
    for raw in raw_partitions(root, tool, schemas):
        rows = lake.count_rows(raw)
        counts["collected"] += rows
        if lake.find_manifest(raw.in_layer("processed"), fingerprint(raw, schemas[raw.table])) is None:
            counts["unprocessed"] += rows
            continue
        counts["processed"] += lake.count_rows(raw.in_layer("processed"))
        counts["rejected"] += lake.count_rows(raw.in_layer("rejects"))
    return Balance(tool=tool, **counts)


def reject_reasons(root: Path, tool: str, schemas: dict[str, str | None]) -> Counter[tuple[str, str]]:
    """Count the rejected rows of a tool's tables (name -> schema) by table and reason."""
    reasons: Counter[tuple[str, str]] = Counter()
    for raw in raw_partitions(root, tool, schemas):
        rejects = raw.in_layer("rejects")
        done = lake.find_manifest(raw.in_layer("processed"), fingerprint(raw, schemas[raw.table])) is not None
        if done and lake.count_rows(rejects):
            reasons.update((raw.table, str(reason)) for reason in lake.read(rejects)[stages.REASON].to_pylist())
    return reasons


def raw_partitions(root: Path, tool: str, tables: Iterable[str]) -> list[lake.Partition]:
    """Return the complete raw partitions of a tool's tables, which are the input of processing."""
    candidates = (partition for table in tables for partition in lake.list_partitions(root, "raw", tool, table))
    return [partition for partition in candidates if lake.find_manifest(partition) is not None]


def fingerprint(raw: lake.Partition, schema: str | None) -> str:
    """Return a text that identifies the result of processing `raw` by these rules.

    Raises:
        DataProcessingException: DATA_ERROR, the partition is not complete.
    """
    manifest = lake.find_manifest(raw)
    if manifest is None:
        raise lake.incomplete_error(raw)
    return f"{manifest.checksum} {schema or 'as it is'} {rules.VERSION}"
