"""Describes what a bootstrap creates and sets on a Prefect server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from prefect.types import check_variable_value
from prefect.types.names import BlockDocumentName, Name, VariableName
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from executor_adapter.config import Settings, read_yaml
from executor_adapter.exceptions import ConfigurationError

DEFAULT_HEARTBEAT_SECONDS = 180
"""Seconds between two heartbeats of a flow run, where PREFECT_FLOWS_HEARTBEAT_FREQUENCY is not set."""
HEARTBEAT_VARIABLES = ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "PREFECT_RUNNER_HEARTBEAT_FREQUENCY")
"""The variables that set it, the old name last: Prefect takes the first one."""


class BootstrapPlan(BaseModel):
    """What a bootstrap creates and sets. Each part may be left out; an empty one creates nothing of its kind.

    Names and values are those that a server takes, so that nothing is created of a plan that it would not take whole.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    work_pool: Name = "local"
    """The work pool that runs the deployments."""
    work_pool_type: str | None = None
    """Its type: process, docker, kubernetes, ... null: any; process, if it has to be created."""
    work_queues: dict[Name, Annotated[int, Field(ge=1)]] = {
        "collection": 1,
        "processing": 2,
        "pipeline": 3,
        "maintenance": 4,
    }
    """The queues of the pool with their priorities; 1 comes first."""
    tool_limits: bool = True
    """Whether each tool of the configuration that has a rate or a limit gets a global concurrency limit."""
    variables: dict[VariableName, Annotated[JsonValue, AfterValidator(check_variable_value)]] = {}
    """Variables with their values, which are such as JSON has: a date stands in quotes."""
    executor_block: BlockDocumentName | None = "default"
    """The name of a JobExecutorBlock, which is created with the configuration's number of workers. What a block holds
    belongs to people."""
    automations: bool = True
    """Whether there are the automations that watch jobs and flow runs of the pool. Their actions belong to people."""
    heartbeat_seconds: Annotated[int, Field(ge=30)] = DEFAULT_HEARTBEAT_SECONDS
    """The longest interval between two heartbeats of the pool's flow runs; a deployment of the pool may have a longer
    one. After four without one a flow run becomes Crashed."""
    crashes_rescheduled: Annotated[int, Field(ge=0, le=100)] = 0
    """How many crashes of a flow run of the work pool are followed by another start of it; of one that crashes before
    it starts, two at most. Its functions must be able to run twice. 0: none."""
    pending_seconds: Annotated[int, Field(ge=30)] | None = None
    """Seconds in which a flow run that a worker of the pool took must start, or it is scheduled again: longer than the
    start of a container takes. null: any time."""


def read_plan(file: Path) -> BootstrapPlan:
    """Read a plan from a YAML file.

    Raises:
        ConfigurationError: the file cannot be read, has an unknown key or a wrong value.
    """
    try:
        return BootstrapPlan.model_validate(read_yaml(file))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{file}: {key or 'the whole file'}: {first['msg']}") from error


def heartbeat_seconds(environment: Mapping[str, Any]) -> int:
    """Return the interval of heartbeats of a flow run whose process has these variables besides its own.

    One that is off counts as 0. One that only the process can resolve counts as Prefect's default.
    """
    value = next((environment[name] for name in HEARTBEAT_VARIABLES if name in environment), DEFAULT_HEARTBEAT_SECONDS)
    try:
        return int(value or 0)
    except ValueError:
        return DEFAULT_HEARTBEAT_SECONDS


def tool_limits(settings: Settings) -> Iterator[tuple[str, int, float]]:
    """Yield a global concurrency limit for each limit of a tool: its name, its slots and their decay a second.

    `tool:NAME` holds `max_concurrent` attempts at once and does not decay. `tool-rate:NAME` holds `burst` starts, and
    frees as many of them a second as the tool's rate without its buffer.
    """
    for name, tool in settings.tools.items():
        if tool.max_concurrent is not None:
            yield f"tool:{name}", tool.max_concurrent, 0.0
        if tool.rate is not None:
            buffer = settings.collection.rate_limit_buffer if tool.buffer is None else tool.buffer
            yield f"tool-rate:{name}", tool.burst, round(tool.rate * (1 - buffer), 9)
