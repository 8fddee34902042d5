"""The types of the flows' parameters: they give the form in Prefect's UI its choices and its limits.

Prefect takes the description of each parameter from the docstring of its flow.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError


def offer_configured_tools(schema: dict[str, Any]) -> None:
    """Add the tools that are configured now to a JSON schema, as the choices of the form."""
    try:
        tools = list(load_config().tools)
    except ConfigurationError:
        return  # The flow reports it when it runs.
    if tools:
        schema["enum"] = tools


ToolName = Annotated[str, Field(json_schema_extra=offer_configured_tools)]
Days = Annotated[int, Field(ge=1, le=3650)]
