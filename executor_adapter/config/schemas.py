"""Schemas of tables: the type of each column is declared, and never guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from executor_adapter.config.sections import Names, Section

KINDS = ("text", "integer", "decimal", "float", "boolean", "date", "timestamp", "json")
MAX_DIGITS = 38
"""Digits of a decimal, at most."""
DIRECTIVES = "YmdHMSfzbyjpI%"
"""What may follow % in the format of a date or timestamp; each means the same as in Python's `strptime`."""

_TYPE = re.compile(rf"(?:{'|'.join(KINDS)})|decimal\(\s*(\d+)\s*,\s*(\d+)\s*\)")


class Column(Section):
    """Declares one column of a table."""

    type: str = Field(
        description="'text', 'integer', 'decimal(digits, places)', 'float', 'boolean', 'date', 'timestamp' or 'json'"
    )
    nullable: bool = True
    """Whether a row without a value is right; otherwise it is rejected."""
    optional: bool = False
    """Whether the source may have no such column at all; otherwise that is an error."""
    nulls: Names = ()
    """Texts that mean that there is no value, such as "NA"."""
    format: str | None = None
    """Date, timestamp: the format, such as `%d.%m.%Y %H:%M`, with a year; null: ISO 8601."""
    zone: str | None = None
    """Timestamp: the zone of texts that name none, such as Europe/Berlin; null: such texts are rejected."""

    @model_validator(mode="before")
    @classmethod
    def _from_type_alone(cls, value: Any) -> Any:
        return {"type": value} if isinstance(value, str) else value

    @field_validator("type")
    @classmethod
    def _check_type(cls, value: str) -> str:
        found = _TYPE.fullmatch(value.strip())
        if found is None or value.strip() == "decimal":
            raise ValueError(f"must be {cls.model_fields['type'].description}")
        if found[1] is not None:
            digits, places = int(found[1]), int(found[2])
            if not (1 <= digits <= MAX_DIGITS and places <= digits):
                raise ValueError(f"must have 1 to {MAX_DIGITS} digits, and no more places than digits")
            return f"decimal({digits}, {places})"
        return value.strip()

    @field_validator("zone")
    @classmethod
    def _check_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except Exception:  # The database of zones raises many kinds.
                raise ValueError("must be the name of a zone, such as Europe/Berlin or UTC") from None
        return value

    @field_validator("format")
    @classmethod
    def _check_format(cls, value: str | None) -> str | None:
        found = set(re.findall(r"%(.?)", value or "", re.DOTALL))
        if not found <= {*DIRECTIVES}:
            raise ValueError(f"must have no directives but {', '.join(f'%{each}' for each in DIRECTIVES)}")
        if ("I" in found) != ("p" in found):
            raise ValueError("must have %I and %p together, the hour of 12 and AM or PM: the hour of 24 is %H")
        return value

    @model_validator(mode="after")
    def _check_together(self) -> Column:
        if self.format is not None and self.kind not in ("date", "timestamp"):
            raise ValueError(f"format is for dates and timestamps, not for {self.kind}")
        if self.format is not None and not re.search("%[Yy]", self.format.replace("%%", "")):
            raise ValueError("format must have a year, %Y or %y: declare it as text, and let a step add the year")
        if self.zone is not None and self.kind != "timestamp":
            raise ValueError(f"zone is for timestamps, not for {self.kind}")
        return self

    @property
    def kind(self) -> str:
        """The type without its digits: `decimal` of `decimal(10, 2)`."""
        return self.type.partition("(")[0]

    @property
    def digits_and_places(self) -> tuple[int, int]:
        """The digits and the places after the point of a decimal."""
        digits, places = re.findall(r"\d+", self.type)
        return int(digits), int(places)


class _OrType:
    """Lets the type of a column stand for the column in the JSON schema, as it may in the configuration."""

    @staticmethod
    def __get_pydantic_json_schema__(core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string"}, handler(core_schema)]}


class TableSchema(Section):
    """Declares the columns of a table. Those that are not declared are kept as text."""

    columns: dict[str, Annotated[Column, _OrType]] = Field(
        min_length=1, description="a mapping of column names to types"
    )

    @model_validator(mode="before")
    @classmethod
    def _check_columns(cls, values: Any) -> Any:
        columns = values.get("columns") if isinstance(values, Mapping) else None
        if isinstance(columns, Mapping) and any(not isinstance(each, str) for each in columns):
            raise ValueError("names of columns must be text: write them in quotes")
        return values
