"""The types of the flows' parameters: they give the form in Prefect's UI its choices and its limits.

Prefect takes the description of each parameter from the docstring of its flow.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.tables import configured_tables


def offer_configured_tools(schema: dict[str, Any]) -> None:
    """Add the tools and tables that are configured now to a JSON schema, as the choices of the form."""
    try:
        settings = load_config()
    except ConfigurationError:
        return  # The flow reports it when it runs.
    if settings.tools:
        tables = [table.full_name for tool in settings.tools for table in configured_tables(settings, tool)]
        schema["enum"] = [*settings.tools, *tables]


ToolName = Annotated[str, Field(json_schema_extra=offer_configured_tools)]
Days = Annotated[int, Field(ge=1, le=3650)]
