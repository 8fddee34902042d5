"""Rules for airlines, as a model of pydantic. It takes row by row, so it is for small tables; pandera takes columns."""

from __future__ import annotations

from typing import Annotated, Any

import pandas as pd
from pydantic import BaseModel, StringConstraints, ValidationError


class Airline(BaseModel):
    """An airline that flights name by its code."""

    carrier: Annotated[str, StringConstraints(pattern=r"^[A-Z0-9]{2}$")]
    """The code of IATA."""
    name: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


def check_airlines(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the airlines, and for each that is not one everything that is wrong with it, by which it is rejected."""
    return rows.assign(_reason=pd.array([reason(row) for row in rows.to_dict("records")], dtype="string"))


def reason(row: dict[Any, Any]) -> str | None:
    """Return everything that the model finds wrong with a row; None if it fits."""
    try:
        Airline.model_validate(row)
    except ValidationError as error:
        return "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
    return None
