"""Settings: `config.yaml`, and over it the environment and `.env`, checked before anything starts.

A key of the file is a variable of the environment too: `collection.job_timeout` is
`EXECUTOR_ADAPTER_COLLECTION__JOB_TIMEOUT`. The environment wins over `.env`, `.env` over the file. What is wrong is
said in one line by a ConfigurationError: the key, its value, and what is allowed.

What a job is given where it says nothing itself, the strongest first: `tools.NAME.job`, then the section of the stage
(`collection` or `processing`, for jobs of that scheduler), then `job`.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from executor_adapter.config.errors import describe, one_line, read_yaml, top_level_keys
from executor_adapter.config.sections import (
    CollectionSettings,
    ExecutorSettings,
    JobSettings,
    MirrorMode,
    MonitoringSettings,
    Name,
    PrefectSettings,
    ProcessingSettings,
    Section,
    StageSettings,
    StoreSettings,
    check_keys,
    check_time_before,
)
from executor_adapter.config.tools import FilesTool, FileTable, RestResource, RestTool, Tool, ToolSettings
from executor_adapter.exceptions import ConfigurationError

__all__ = [
    "CollectionSettings",
    "ExecutorSettings",
    "FileTable",
    "FilesTool",
    "JobSettings",
    "MirrorMode",
    "MonitoringSettings",
    "PrefectSettings",
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
"""The variable, of the environment or of `.env`, that names the file."""
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
    prefect: PrefectSettings = PrefectSettings()
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

    @model_validator(mode="after")
    def _check_jobs(self) -> Self:
        """Refuse what every job that says nothing itself would be refused for."""
        general = ("job", self.job)
        stages = [(stage, getattr(self, stage).as_job()) for stage in get_args(Stage)]
        tools = [(f"tools.{name}.job", tool.job) for name, tool in self.tools.items()]
        for layers in ([], *([stage] for stage in stages), *([tool] for tool in tools)):
            check_time_before([*layers, general])
        for tool, stage in itertools.product(tools, stages):
            check_time_before([tool, stage, general])
        return self

    def for_stage(self, stage: Stage) -> Settings:
        """These settings, with what the section of `stage` says of jobs put over the section `job`."""
        section: StageSettings = getattr(self, stage)
        return self.model_copy(update={"job": section.as_job().over(self.job)})


def load_config(path: str | Path | None = None) -> Settings:
    """The settings in force: of `path`, else of $EXECUTOR_ADAPTER_CONFIG, else of ./config.yaml where there is one that
    is ours, else the defaults; the environment and `.env` over them.

    Many programs have a config.yaml: one that was not named, and has none of our sections, is taken for another's.

    Raises:
        ConfigurationError: in one line, what is wrong: key, value, and what is allowed.
    """
    return read_config(path).settings()


class Sources:
    """What the file, `.env` and the environment say, before it is checked.

    `named`: whether the file was, or else is there by chance. `passed_by`: one that is there and another program's.
    """

    def __init__(self, file: Path | None, *, named: bool = True, passed_by: Path | None = None) -> None:
        self.file = file
        self.passed_by = passed_by
        self._named = named
        self.written = {} if file is None else read_yaml(file)
        try:
            self.given = {"environment": EnvSettingsSource(Settings)(), ".env": _DotEnv(Settings)()}
        except SettingsError as error:
            raise ConfigurationError(f"environment: {one_line(error)}: {one_line(error.__cause__)}") from None

    @property
    def described(self) -> str:
        """Which file is read, for people."""
        if self.passed_by is not None:
            return f"no file: the defaults ({self.passed_by} has no section of ours: another program's)"
        return "no file: the defaults" if self.file is None else str(self.file)

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
            said = describe(error, str(self.file or "defaults"), self.written, self.given)
            raise ConfigurationError(said + self._if_not_ours(error)) from None
        return _anchored(settings, Path.cwd() if self.file is None else self.file.resolve().parent)

    def _if_not_ours(self, error: ValidationError) -> str:
        if self._named or error.errors()[0]["type"] != "unknown_key":
            return ""
        return f" (if {self.file} is another program's, have {CONFIG} name yours)"


def read_config(path: str | Path | None = None) -> Sources:
    """What there is to be read; see `load_config` for which file that is.

    Raises:
        ConfigurationError: a file cannot be read, or a variable is no JSON where it must be.
    """
    named = path or os.environ.get(CONFIG) or _DotEnv(Settings).env_vars.get(CONFIG.lower())
    if named:
        return Sources(Path(named))
    found = Path("config.yaml")
    if not found.is_file():
        return Sources(None)
    return Sources(None, passed_by=found) if _is_another_s(found) else Sources(found, named=False)


def _is_another_s(file: Path) -> bool:
    """Whether nothing at its top is a section of ours, nearly one, or a key of one in the wrong place."""
    keys = top_level_keys(file)
    if keys is None:
        return False
    fields = Settings.model_fields
    sections = [kind for field in fields.values() if isinstance(kind := field.annotation, type)]
    inner = {key for kind in sections if issubclass(kind, Section) for key in kind.model_fields}
    distinct = {key for key in inner if "_" in key}
    return not any(key in distinct or difflib.get_close_matches(key, fields, n=1, cutoff=NEAR) for key in keys)


NEAR = 0.75
"""From here on a key is taken for a misspelt one of ours, see difflib."""


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
