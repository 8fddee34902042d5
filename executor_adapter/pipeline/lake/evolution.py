"""How the columns of a table may change: they are added and widened, and never narrowed.

All files of a table have the same columns, so that every reader reads them together.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import pyarrow as pa

from executor_adapter.pipeline.errors import rows_error


def evolved(stored: pa.Schema, new: pa.Schema, *, is_declared: bool = True) -> tuple[pa.Schema, list[str]]:
    """Return the columns of a table after rows with the columns `new` are written, and what changes, in words.

    A column that the new rows lack stays, and is null in them. A narrower type that is not declared, but that of the
    values of one window, becomes that of the table.

    Raises:
        DataProcessingException: CONFIGURATION_ERROR, a column would be narrowed, or become something else.
    """
    fields, changes = [], []
    for field in stored:
        place = new.get_field_index(field.name)
        kind = field.type if place < 0 else new.field(place).type
        is_narrower = not is_declared and _is_wider(field.type, kind)
        wider = field.type if is_narrower else _widened(field.name, field.type, kind)
        if wider != field.type:
            changes.append(f"{field.name}: {field.type} becomes {wider}")
        fields.append(pa.field(field.name, wider))
    for field in new:
        if stored.get_field_index(field.name) < 0:
            changes.append(f"{field.name}: {field.type} is new, and null in the rows before")
            fields.append(pa.field(field.name, field.type))
    return pa.schema(fields), changes


def check_names(schema: pa.Schema, reserved: Collection[str]) -> None:
    """Refuse columns that have a name of the lake's own, or the same name as another, whatever their case: as in SQL.

    Raises:
        DataProcessingException: DATA_ERROR.
    """
    found = set[str]()
    for name in schema.names:
        if (folded := name.casefold()) in reserved:
            raise rows_error(f"the column {name} has a name that the lake uses: give it another one", "lake")
        if folded in found:
            said = f"the column {name!r} is there twice, if not in one case: give each its own name"
            raise rows_error(f"{said}, or one case in the source and in schema", "lake")
        found.add(folded)


def plain(rows: pa.Table) -> pa.Table:
    """Return rows in the types of the lake: the variants that libraries have of one type become that type.

    Raises:
        DataProcessingException: DATA_ERROR, a moment has more than microseconds, or there are intervals.
    """
    if wrong := next((each.name for each in rows.schema if pa.types.is_interval(each.type)), None):
        raise rows_error(f"column {wrong}: the lake has no intervals: make a number of seconds or text of it", "lake")
    fields = [pa.field(field.name, _plain_type(field.type)) for field in rows.schema]
    return fitted(rows.replace_schema_metadata(), pa.schema(fields))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind):
        return pa.binary()
    return pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else kind


def fitted(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with the columns of a table, each value exactly as it was; missing columns are null.

    Raises:
        DataProcessingException: DATA_ERROR, a value cannot be kept exactly.
    """
    if rows.schema.equals(schema):
        return rows
    columns = []
    for field in schema:
        is_there = field.name in rows.column_names
        try:
            columns.append(rows[field.name].cast(field.type) if is_there else pa.nulls(rows.num_rows, field.type))
        except pa.ArrowInvalid as error:
            raise rows_error(f"{field.name}: {error}", "lake") from error
    return pa.Table.from_arrays(columns, schema=schema)


def _widened(name: str, old: pa.DataType, new: pa.DataType) -> pa.DataType:
    if old == new or pa.types.is_null(new):
        return old  # Without any value so far, a column has no type.
    if _is_wider(new, old):
        return new
    raise rows_error(
        f"column {name}: the table has {old}, and the schema says {new} now: a table is never narrowed: "
        f"declare {old} or wider, or make the table anew by `executor-adapter pipeline rebuild`",
        "lake",
        "CONFIGURATION_ERROR",
    )


def _is_wider(kind: pa.DataType, than: pa.DataType) -> bool:
    both = [pa.schema([("", than)]), pa.schema([("", kind)])]
    # A float does not hold each decimal, and bytes are no text. Where a float does not hold an integer, its cast fails.
    loses = (pa.types.is_decimal(than) and pa.types.is_floating(kind)) or pa.types.is_string(than)
    with suppress(pa.ArrowTypeError):
        return not loses and bool(pa.unify_schemas(both, promote_options="permissive").field(0).type == kind)
    return False
