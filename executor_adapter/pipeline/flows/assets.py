"""Tables as Prefect's assets: when a table has new rows, an event says so, and from which tables they came."""

from __future__ import annotations

from collections.abc import Iterable

from prefect.assets import Asset, AssetProperties, add_asset_metadata, materialize

from executor_adapter.pipeline.flows.run import untagged
from executor_adapter.pipeline.lake.table import LakeTable
from executor_adapter.pipeline.tables import ConfiguredTable

MATERIALISED_BY = "executor_adapter"


def asset_of(table: LakeTable) -> Asset:
    """Return the asset of a table in a layer of the lake; its address names no machine."""
    return Asset(
        key=f"lake://{table.layer}/{table.tool}/{table.name}",
        properties=AssetProperties(name=str(table), url=table.folder.absolute().as_uri()),
    )


def materialise_raw(table: ConfiguredTable, tables: Iterable[ConfiguredTable], rows: int) -> None:
    """Tell that a table has rows that were collected now."""
    parents = [asset_of(other.raw) for other in tables if other.name == table.parent]
    _materialise(table.raw, parents or [f"source://{table.tool_name}/{table.name}"], rows)


def materialise_processed(table: ConfiguredTable, rows: int) -> None:
    """Tell that a table has rows that were processed now; the tables whose rows were joined are among its origins."""
    joined = [f"lake://processed/{name.replace('.', '/')}" for name in sorted(table.reads)]
    _materialise(table.processed, [asset_of(table.raw), *joined], rows)


def _materialise(table: LakeTable, origins: Iterable[Asset | str], rows: int) -> None:
    asset = asset_of(table)

    @materialize(
        asset,
        by=MATERIALISED_BY,
        asset_deps=list(origins),
        name="materialise table",
        task_run_name=f"materialise {table}",
        persist_result=False,
    )
    def note() -> None:
        add_asset_metadata(asset, {"rows": rows})

    with untagged():
        note()
