"""What a table of the lake is: where it lies, what identifies its rows, and what becomes of those that vanish."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.lake.layout import Place

Vanished = Literal["keep", "mark", "delete"]
"""What becomes of rows or windows that the source has no longer: they stay, stay with the time at which they were
missed, or are removed."""
VANISHED_AT = "vanished_at"
"""The column that is added to tables whose policy is "mark"."""
MOMENT = pa.timestamp("us", "UTC")


@dataclass(frozen=True, kw_only=True)
class LakeSettings:
    """The settings of one table in one layer of a lake.

    Raises:
        ConfigurationError: they contradict one another.
    """

    root: Path
    """The folder of the lake."""
    layer: str
    """What kind of tables it is among: "raw", "processed", "rejects", ..."""
    tool: str
    name: str
    key: tuple[str, ...] = ()
    """The columns that identify a row within its window; none: a window, or a range of it, is replaced altogether."""
    cursor: str | None = None
    """The column by which the source is asked for what is new."""
    vanished_rows: Vanished | None = None
    """What becomes of rows that the source has no longer; None: "keep" with a key, "delete" without."""
    vanished_windows: Vanished = "keep"
    """What becomes of windows that the source has no longer: see `settle_windows`."""
    lock_timeout: float = 300.0
    """Seconds to wait for another job that writes to the table."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))
        key: Any = self.key  # People write one column as text.
        object.__setattr__(self, "key", (key,) if isinstance(key, str) else tuple(key))
        for field in ("layer", "tool", "name"):
            value = getattr(self, field)
            # They are names of folders, and readers pass over those that begin with a dot or an underscore.
            if not value or value.startswith((".", "_")) or "/" in value:
                raise ConfigurationError(
                    f"{field}: {value!r} is not allowed: must be a name without /, that begins with neither . nor _"
                )
        if self.vanished_rows in ("keep", "mark") and not self.key:
            raise ConfigurationError(
                f"{self.place}: vanished_rows: {self.vanished_rows!r} needs a key: name the columns that identify a row"
            )

    @property
    def place(self) -> Place:
        """The paths of the table."""
        return Place(root=self.root, layer=self.layer, tool=self.tool, table=self.name)

    @property
    def folder(self) -> Path:
        """The folder to read with pyarrow, pandas, Polars or DuckDB; `window` is a column of what they read."""
        return self.place.folder

    @property
    def policy(self) -> Vanished:
        """What becomes of rows that the source has no longer."""
        return self.vanished_rows or ("keep" if self.key else "delete")

    @property
    def extra_columns(self) -> pa.Schema:
        """The columns that the lake adds to those of the rows."""
        marks = "mark" in (self.policy, self.vanished_windows)
        return pa.schema([(VANISHED_AT, MOMENT)] if marks else [])
