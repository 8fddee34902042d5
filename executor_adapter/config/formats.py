"""How bytes become rows: the keys that a table of a file and a resource of an API share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from executor_adapter.config.sections import Names, Section
from executor_adapter.job import Count


class Format(Section):
    """Says how bytes become rows. What is not set is found out from the data, and the log says what was found."""

    format: Literal["csv", "ndjson", "json", "parquet"] | None = None
    """What the data is; null: by the name of the file, or the content type of the answer."""
    encoding: str | None = None
    """The encoding of text, such as latin-1; null: UTF-8, or what the data's byte order mark says."""
    records: str | None = None
    """JSON: the keys that lead to the list of objects, or to one object, such as `data.items`; `.`: the data is one
    object; null: the data is the list."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=4)
    """CSV: what is between two values; null: a comma, and a tab in a .tsv file."""
    quote: str | None = Field(default=None, max_length=1)
    """CSV: the character around values; null: `"`; empty: there is none."""
    header: bool | None = None
    """CSV: whether the first line has the names of the columns; null: found out; an error where that is not clear."""
    columns: Names = ()
    """CSV: the names of the columns, where the data has no header."""
    skip: Count = Field(default=0, ge=0)
    """CSV: lines before the header that are passed over."""
    nulls: Names = ("",)
    """Texts that mean that there is no value. A quoted text in CSV is always a value; an empty text in JSON is one."""
