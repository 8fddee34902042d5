"""What a stage is, and the account of its rows: each one that it is given goes on, is rejected or dropped."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from executor_adapter.exceptions import ConfigurationError, DataProcessingException

MISTAKES = (LookupError, TypeError, ValueError, AttributeError, NameError, ArithmeticError, AssertionError)
"""What a stage raises that has a mistake, or that the rows do not suit: the same rows raise it again."""


def no_reasons() -> pd.Series:
    """Return reasons of no row."""
    return pd.Series([], index=pd.Index([], dtype="int64"), dtype="object")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageOutput:
    """What a stage makes of rows. Each row that it was given is in one of the three, by its label in the index."""

    rows: pd.DataFrame
    """The rows that go on."""
    rejected: pd.Series = field(default_factory=no_reasons)
    """What is wrong with rows that are put aside: the reasons, indexed by the labels of the rows."""
    dropped: pd.Series = field(default_factory=no_reasons)
    """Why rows are left out that are not wrong, likewise. They are counted, and not kept."""


Stage = Callable[[pd.DataFrame], pd.DataFrame | StageOutput]
"""A stage. A row that is missing in a DataFrame that it returns is counted as dropped by it."""


@dataclass(frozen=True, slots=True)
class NamedStage:
    """A stage and the name by which its rows are accounted for."""

    name: str
    function: Stage

    def __call__(self, rows: pd.DataFrame) -> StageOutput:
        """Return what the stage makes of rows, whose labels are unique.

        Raises:
            DataProcessingException: CONFIGURATION_ERROR, it returns rows that it was not given, or one twice;
                DATA_ERROR, it raises one of `MISTAKES`. What else it raises may pass, and is raised as it is.
        """
        try:
            found = self.function(rows)
        except (ConfigurationError, OSError):
            raise
        except MISTAKES as error:
            raise self._error(f"raised {type(error).__name__}: {error}{_place_of(error)}", "DATA_ERROR") from error
        output = found if isinstance(found, StageOutput) else self._with_dropped(rows, found)
        if output.rows.index.equals(rows.index) and not len(output.rejected) + len(output.dropped):
            return output
        labels = output.rows.index.append([output.rejected.index, output.dropped.index])
        foreign = labels.difference(rows.index)
        if len(foreign):
            raise self._error(
                f"returned {len(foreign)} rows that it was not given: keep the index of the rows, "
                "which merge and reset_index replace"
            )
        if labels.has_duplicates:
            raise self._error("returned a row twice: return each row once, or reject or drop it")
        if len(labels) != len(rows):
            raise self._error(f"returned {len(labels)} of {len(rows)} rows: say of the others why they are dropped")
        return output

    def _with_dropped(self, rows: pd.DataFrame, found: object) -> StageOutput:
        if not isinstance(found, pd.DataFrame):
            raise self._error(f"returned a {type(found).__name__}: return a DataFrame or a StageOutput")
        missing = rows.index.difference(found.index)
        return StageOutput(rows=found, dropped=pd.Series(f"dropped by {self.name}", index=missing, dtype="object"))

    def _error(self, message: str, code: str = "CONFIGURATION_ERROR") -> DataProcessingException:
        return DataProcessingException(f"stage {self.name} {message}", error_code=code, processing_stage=self.name)


def _place_of(error: Exception) -> str:
    """Return where in the stage's own file an exception was raised, or nothing where Python does not know."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


@dataclass(slots=True, kw_only=True)
class Account:
    """Counts rows: `given` equals `kept` and all that was rejected and dropped."""

    given: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Rows by the reason for which they were rejected."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows by the reason for which they were dropped."""

    def check(self) -> None:
        """Check that no row is lost.

        Raises:
            DataProcessingException: PROCESSING_ERROR, one is.
        """
        rejected, dropped = self.rejected.total(), self.dropped.total()
        if self.given != self.kept + rejected + dropped:
            raise DataProcessingException(
                f"{self.given} rows were given, but {self.kept} kept, {rejected} rejected and {dropped} dropped",
                processing_stage="conservation",
            )
