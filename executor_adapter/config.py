"""Settings: `config.yaml`, and over it the environment and `.env`, checked before anything starts.

A key of the file is a variable of the environment too: `collection.job_timeout` is
`EXECUTOR_ADAPTER_COLLECTION__JOB_TIMEOUT`. The environment wins over `.env`, `.env` over the file. What is wrong is
said in one line by a ConfigurationError: the key, its value, and what is allowed.

What a job is given where it says nothing itself, the strongest first: `tools.NAME.job`, then the section of the stage
(`collection` or `processing`, for jobs of that scheduler), then `job`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from executor_adapter.config_errors import describe, one_line, read_yaml
from executor_adapter.config_sections import (
    CollectionSettings,
    ExecutorSettings,
    JobSettings,
    MonitoringSettings,
    Name,
    ProcessingSettings,
    StageSettings,
    StoreSettings,
    check_keys,
)
from executor_adapter.config_tools import FilesTool, FileTable, RestResource, RestTool, Tool, ToolSettings
from executor_adapter.exceptions import ConfigurationError

__all__ = [
    "CollectionSettings",
    "ExecutorSettings",
    "FileTable",
    "FilesTool",
    "JobSettings",
    "MonitoringSettings",
    "ProcessingSettings",
    "RestResource",
    "RestTool",
    "Settings",
    "Stage",
    "StageSettings",
    "StoreSettings",
    "Tool",
    "load_config",
]

Stage = Literal["collection", "processing"]

PREFIX = "EXECUTOR_ADAPTER_"
CONFIG = f"{PREFIX}CONFIG"
"""The variable that names the file."""
NO_SETTINGS = frozenset({CONFIG, f"{PREFIX}TREE"})
"""Variables of ours that are no settings; the second marks what a worker process has started."""


class _DotEnv(DotEnvSettingsSource):
    def __call__(self) -> dict[str, Any]:
        # A .env file is shared with other programs: what is none of our variables is none of our business.
        return EnvSettingsSource.__call__(self)


class Settings(BaseSettings):
    """All settings. A relative `lake`, `store.url` or directory of a tool is relative to the file that `load_config`
    read."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        env_file=".env",
        use_attribute_docstrings=True,
    )

    collection: CollectionSettings = CollectionSettings()
    processing: ProcessingSettings = ProcessingSettings()
    job: JobSettings = JobSettings()
    executor: ExecutorSettings = ExecutorSettings()
    store: StoreSettings = StoreSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    tools: dict[Name, ToolSettings] = Field(default_factory=dict)
    """By the tool's name."""
    lake: Path = Path("data")
    """Where the demo's data lies."""

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

    def for_stage(self, stage: Stage) -> Settings:
        """These settings, with what the section of `stage` says of jobs put over the section `job`."""
        section: StageSettings = getattr(self, stage)
        return self.model_copy(update={"job": section.as_job().over(self.job)})


def load_config(path: str | Path | None = None) -> Settings:
    """The settings in force: of `path`, else of $EXECUTOR_ADAPTER_CONFIG, else of ./config.yaml where there is one,
    else the defaults; the environment and `.env` over them.

    Raises:
        ConfigurationError: in one line, what is wrong: key, value, and what is allowed.
    """
    return read_config(path).settings()


class Sources:
    """What the file, `.env` and the environment say, before it is checked."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.written = {} if file is None else read_yaml(file)
        try:
            self.given = {"environment": EnvSettingsSource(Settings)(), ".env": _DotEnv(Settings)()}
        except SettingsError as error:
            raise ConfigurationError(f"environment: {one_line(error)}: {one_line(error.__cause__)}") from None

    def settings(self) -> Settings:
        """The settings that they make.

        Raises:
            ConfigurationError: in one line, what is wrong.
        """
        _refuse_unknown("environment", os.environ)
        _refuse_unknown(".env", _DotEnv(Settings).env_vars)
        try:
            settings = Settings(**self.written)
        except ValidationError as error:
            raise ConfigurationError(describe(error, str(self.file or "defaults"), self.written, self.given)) from None
        return _anchored(settings, Path.cwd() if self.file is None else self.file.resolve().parent)


def read_config(path: str | Path | None = None) -> Sources:
    """What there is to be read; see `load_config` for which file that is.

    Raises:
        ConfigurationError: a file cannot be read, or a variable is no JSON where it must be.
    """
    named = path or os.environ.get(CONFIG)
    if named:
        return Sources(Path(named))
    return Sources(Path("config.yaml") if Path("config.yaml").is_file() else None)


def _refuse_unknown(place: str, variables: Iterable[str]) -> None:
    """Refuse a variable of ours whose section no one knows: it was meant to change something and would not."""
    allowed = sorted(f"{PREFIX}{field.upper()}" for field in Settings.model_fields)
    for name in variables:
        key = name.upper()
        if key.startswith(PREFIX) and key not in NO_SETTINGS and key.partition("__")[0] not in allowed:
            near = difflib.get_close_matches(key.partition("__")[0], allowed, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            said = f"{hint}allowed are {', '.join(allowed)}, and what is in them"
            raise ConfigurationError(f"{place}: {key} is not a key: {said}")


def _anchored(settings: Settings, base: Path) -> Settings:
    tools = {
        name: tool.model_copy(update={"directory": base / tool.directory})
        if isinstance(tool, FilesTool) and tool.directory is not None
        else tool
        for name, tool in settings.tools.items()
    }
    store = settings.store.model_copy(update={"url": _anchored_url(settings.store.url, base)})
    return settings.model_copy(update={"lake": base / settings.lake, "tools": tools, "store": store})


def _anchored_url(url: str | None, base: Path) -> str | None:
    scheme, has_path, path = (url or "").partition(":///")
    if not has_path or not scheme.startswith("sqlite") or path.startswith(("/", ":memory:")) or not path:
        return url
    return f"{scheme}:///{base / path}"
