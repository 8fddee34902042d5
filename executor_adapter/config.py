"""Settings: `config.yaml`, and over it the environment and `.env`, checked before anything starts.

A key of the file is a variable of the environment too: `collection.job_timeout` is
`EXECUTOR_ADAPTER_COLLECTION__JOB_TIMEOUT`. The environment wins over `.env`, `.env` over the file. What is wrong is
said in one line by a ConfigurationError: the key, its value, and what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from executor_adapter.config_errors import describe, one_line, read_yaml
from executor_adapter.exceptions import ConfigurationError

PREFIX = "EXECUTOR_ADAPTER_"


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number")
    return value


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


def _check_name(value: str) -> str:
    # Tools and tables name directories of the lake.
    if not value or value.startswith(".") or not value.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError("must be letters, digits, '-', '_' and '.', and not begin with '.'")
    return value


Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_no_bool)]
Name = Annotated[str, AfterValidator(_check_name)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class Section(BaseModel):
    """A part of the settings: frozen, every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        check_keys(cls, values)
        return values


def check_keys(model: type[BaseModel], values: Any) -> None:
    """Refuse keys that `model` has not, and the lack of one it must have, in words that name the way out."""
    if not isinstance(values, Mapping):
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for key in values:
        if key not in fields:
            raise PydanticCustomError("unknown_key", "is not a key", {"key": str(key), "allowed": sorted(fields)})
    for key, field in fields.items():
        if field.is_required() and key not in values:
            raise PydanticCustomError("missing_key", "is missing", {"key": key, "wanted": field.description or ""})


class StageSettings(Section):
    """Limits of the jobs of one stage; seconds."""

    max_concurrent_jobs: Count = Field(default=2, ge=1)
    job_timeout: Number = Field(default=3600.0, gt=0)
    retry_attempts: Count = Field(default=3, ge=0)
    retry_delay: Number = Field(default=60.0, ge=0)


class CollectionSettings(StageSettings):
    """Collection: mostly waiting for others, so in threads."""

    max_concurrent_jobs: Count = Field(default=4, ge=1)
    rate_limit_buffer: Number = Field(default=0.1, ge=0, lt=1)
    """Share of a rate limit that is left unused."""


class ProcessingSettings(StageSettings):
    """Processing: computing, so in processes."""

    batch_size: Count = Field(default=1000, ge=1)
    """Rows in memory at a time, of each job."""


class ExecutorSettings(Section):
    """The executor itself."""

    max_workers: Count = Field(default=4, ge=1)
    kill_grace: Number = Field(default=5.0, ge=0)
    """Seconds between asking a job to end (SIGTERM) and making it (SIGKILL)."""
    preload: Names = ()
    """Modules that workers of the process pool find imported when they start."""
    max_jobs_per_worker: Count | None = Field(default=None, ge=1)
    """Jobs after which a worker process is replaced."""
    max_rss_growth: Count | None = Field(default=None, ge=1)
    """Bytes by which a worker process may grow before it is replaced."""
    nice: Count | None = Field(default=None, ge=-20, le=19)
    """Scheduling priority of worker processes, as nice(1) has it."""
    cpu_affinity: tuple[Count, ...] | None = None
    """Processors that worker processes may run on."""


class FileTable(Section):
    """One table in a file."""

    file: str = Field(min_length=1, description="the path of a CSV or ZIP file, relative to the package or directory")
    member: str | None = None
    """Of a ZIP archive: the file inside, where there are several; a pattern such as `flights*.csv` may name it."""
    partition: Names = ()
    """Columns whose values cut the table into windows, one collection job each; none: one window, `all`."""
    windows: Names | None = None
    """Collect only these windows."""
    schema_name: str | None = Field(default=None, alias="schema")
    """What its rows are checked against; none: they pass as they are."""


class FilesTool(Section):
    """Tables in files: of an installed package, or of a directory."""

    source: Literal["files"] = Field(description="'files' or 'rest'")
    package: str | None = None
    directory: Path | None = None
    tables: dict[Name, FileTable] = Field(min_length=1, description="a mapping of table names to {file: ...}")

    @model_validator(mode="after")
    def _check_place(self) -> FilesTool:
        if (self.package is None) == (self.directory is None):
            raise PydanticCustomError("place", "must have one of the keys package and directory")
        return self


class RestResource(Section):
    """One resource of a REST API: a list of objects, read page by page.

    In `path`, `params` and `body`, `{since}` and `{until}` stand for a window's first and last moment, and `{id}` for
    each id of the resource that `for_each` names (asked for one after another, without pages).
    """

    path: str = Field(min_length=1, description="the path below the tool's url")
    method: Literal["GET", "POST"] = "GET"
    params: dict[str, str] = Field(default_factory=dict)
    body: dict[str, Any] = Field(default_factory=dict)
    key: str = "id"
    """The field that tells one object from another."""
    for_each: str | None = None
    schema_name: str | None = Field(default=None, alias="schema")


class RestTool(Section):
    """A REST API over HTTP, its objects collected by the UTC day they belong to."""

    source: Literal["rest"] = Field(description="'files' or 'rest'")
    url: str | None = Field(default=None, pattern=r"^https?://")
    """Left out: the API of the Prefect server that the flow runs against, with the credentials set for it."""
    headers: dict[str, str] = Field(default_factory=dict)
    page_size: Count = Field(default=200, ge=1)
    pages: Count = Field(default=1000, ge=1)
    """At most so many pages of one resource and day: more is an error, never a silent cut."""
    timeout: Number = Field(default=30.0, gt=0)
    """Seconds to wait for an answer."""
    days: Count = Field(default=1, ge=0)
    """How many days before today to look at; those collected after they were over are not asked for again."""
    resources: dict[Name, RestResource] = Field(min_length=1, description="a mapping of table names to {path: ...}")

    @model_validator(mode="after")
    def _check_parents(self) -> RestTool:
        for name, resource in self.resources.items():
            if resource.for_each is not None and resource.for_each not in self.resources:
                detail = f"resources.{name}.for_each: {resource.for_each!r} is none of {', '.join(self.resources)}"
                raise PydanticCustomError("parent", "{detail}", {"detail": detail})
        return self


ToolSettings = Annotated[FilesTool | RestTool, Field(discriminator="source")]


class _DotEnv(DotEnvSettingsSource):
    def __call__(self) -> dict[str, Any]:
        # A .env file is shared with other programs: what is none of our variables is none of our business.
        return EnvSettingsSource.__call__(self)


class Settings(BaseSettings):
    """All settings. A relative `lake` (or directory of a tool) is relative to the file that `load_config` read."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=PREFIX, env_nested_delimiter="__", env_file=".env"
    )

    collection: CollectionSettings = CollectionSettings()
    processing: ProcessingSettings = ProcessingSettings()
    executor: ExecutorSettings = ExecutorSettings()
    tools: dict[Name, ToolSettings] = Field(default_factory=dict)
    lake: Path = Path("data")

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        check_keys(cls, values)
        return values

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, _DotEnv(settings_cls), init_settings


def load_config(path: str | Path | None = None) -> Settings:
    """The settings in force: of `path`, else of $EXECUTOR_ADAPTER_CONFIG, else of ./config.yaml where there is one,
    else the defaults; the environment and `.env` over them.

    Raises:
        ConfigurationError: in one line, what is wrong: key, value, and what is allowed.
    """
    file = _config_file(path)
    written = {} if file is None else read_yaml(file)
    _check_environment()
    try:
        settings = Settings(**written)
    except ValidationError as error:
        given = {"environment": EnvSettingsSource(Settings)(), ".env": _DotEnv(Settings)()}
        raise ConfigurationError(describe(error, str(file or "defaults"), written, given)) from None
    except SettingsError as error:
        raise ConfigurationError(f"environment: {one_line(error)}: {one_line(error.__cause__)}") from None
    return _anchored(settings, Path.cwd() if file is None else file.resolve().parent)


def _config_file(path: str | Path | None) -> Path | None:
    named = path or os.environ.get(f"{PREFIX}CONFIG")
    if named:
        return Path(named)
    return Path("config.yaml") if Path("config.yaml").is_file() else None


def _check_environment() -> None:
    """Refuse a variable of ours whose section no one knows: it was meant to change something and would not."""
    for name in os.environ:
        section, nested, _ = name.upper().removeprefix(PREFIX).partition("__")
        if name.upper().startswith(PREFIX) and nested and section.lower() not in Settings.model_fields:
            allowed = ", ".join(f"{PREFIX}{field.upper()}" for field in sorted(Settings.model_fields))
            raise ConfigurationError(f"environment: {name} is not a key: allowed are {allowed}, and what is in them")


def _anchored(settings: Settings, base: Path) -> Settings:
    tools = {
        name: tool.model_copy(update={"directory": base / tool.directory})
        if isinstance(tool, FilesTool) and tool.directory is not None
        else tool
        for name, tool in settings.tools.items()
    }
    return settings.model_copy(update={"lake": base / settings.lake, "tools": tools})
