"""The settings as one frozen object, with a section for each part of the program.

A key of `config.yaml` is a variable of the environment too: `collection.job_timeout` is
`EXECUTOR_ADAPTER_COLLECTION__JOB_TIMEOUT`. The environment wins over `.env`, and `.env` over the file; see `sources`.

A job that leaves a field open takes it from `tools.NAME.job`, else from the section of its stage (`collection` or
`processing` for jobs of that scheduler, `executor.job_task` for job tasks), else from `job`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from executor_adapter.config.cluster import ClusterSettings, DaskSettings, RaySettings
from executor_adapter.config.sections import (
    CollectionSettings,
    ExecutorSettings,
    JobSettings,
    JobTaskSettings,
    MonitoringSettings,
    Name,
    PrefectSettings,
    ProcessingSettings,
    Section,
    StageSettings,
    StoreSettings,
    check_soft_timeout,
)
from executor_adapter.config.tools import ToolSettings

Stage = Literal["collection", "processing"]

ENV_PREFIX = "EXECUTOR_ADAPTER_"

_AS_A_TASK = JobTaskSettings(max_runtime=None, retry_attempts=0)
"""What a task of Prefect's has where it has no options."""


def _folder(value: object) -> object:
    if "://" in str(value):  # As a path it would be a folder named "s3:" beside the configuration.
        raise PydanticCustomError("place", "must be a local folder: a sink of yours can copy its tables elsewhere")
    return value


class DotEnvSource(DotEnvSettingsSource):
    """Reads the variables of a `.env` file that are settings of this package."""

    def __call__(self) -> dict[str, Any]:
        """Return the settings; variables of other programs, which share the file, are ignored."""
        return EnvSettingsSource.__call__(self)


class Settings(BaseSettings, Section):
    """Holds all settings, frozen.

    `load_config` makes a relative `lake`, `store.url` or directory of a tool relative to the file that it read.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", env_file=".env")

    collection: CollectionSettings = CollectionSettings()
    processing: ProcessingSettings = ProcessingSettings()
    job: JobSettings = JobSettings()
    executor: ExecutorSettings = ExecutorSettings()
    cluster: ClusterSettings = ClusterSettings()
    store: StoreSettings = StoreSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    prefect: PrefectSettings = PrefectSettings()
    tools: dict[Name, ToolSettings] = Field(default_factory=dict)
    """Tools by name."""
    lake: Annotated[Path, BeforeValidator(_folder)] = Path("data")
    """Local folder of the pipeline's tables."""

    @classmethod
    def from_sources(cls, written: Mapping[str, Any]) -> Settings:
        """Return the settings of a file's content, with the environment and `.env` over it.

        Raises:
            pydantic.ValidationError: a value is wrong.
        """
        made: Settings = type.__call__(cls, **written)
        return made

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over `.env`, and that over what the class is called with: the file's content."""
        return env_settings, DotEnvSource(settings_cls), init_settings

    @model_validator(mode="after")
    def _check_jobs(self) -> Self:
        """Refuse settings under which every job that leaves its fields open would be refused."""
        general, job_task = ("job", self.job), ("executor.job_task", self.executor.job_task)
        tools = [[], *([(f"tools.{name}.job", tool.job)] for name, tool in self.tools.items())]
        stages = [[], *([(stage, getattr(self, stage).as_job())] for stage in get_args(Stage))]
        for tool in tools:
            for stage in stages:
                check_soft_timeout([*tool, *stage, general])
            check_soft_timeout([*tool, job_task, general, ("executor.job_task", _AS_A_TASK)])
        return self

    def for_stage(self, stage: Stage) -> Settings:
        """Return these settings with the section `job` overridden by the job settings of `stage`."""
        section: StageSettings = getattr(self, stage)
        return self.model_copy(update={"job": section.as_job().over(self.job)})

    def for_job_tasks(self) -> Settings:
        """Return these settings with the section `job` for job tasks: where nothing is set, no retry and no limit."""
        return self.model_copy(update={"job": self.executor.job_task.over(self.job).over(_AS_A_TASK)})

    def on_cluster(self, address: str) -> Settings:
        """Return these settings with the cluster at `address`: with a scheme it is of Dask, and otherwise of Ray.

        Raises:
            ConfigurationError: the address is of neither.
        """
        name = "dask" if "://" in address and not address.startswith("ray://") else "ray"
        kind: type[DaskSettings | RaySettings] = DaskSettings if name == "dask" else RaySettings
        engine = kind(**{**getattr(self.cluster, name).model_dump(), "address": address})
        return self.model_copy(update={"cluster": self.cluster.model_copy(update={name: engine})})

    def relative_to(self, directory: Path) -> Settings:
        """Return these settings with relative paths made relative to `directory`."""
        tools = {name: tool.relative_to(directory) for name, tool in self.tools.items()}
        store = self.store.model_copy(update={"url": _url_relative_to(directory, self.store.url)})
        return self.model_copy(update={"lake": directory / self.lake, "tools": tools, "store": store})


def _url_relative_to(directory: Path, url: str | None) -> str | None:
    scheme, has_path, path = (url or "").partition(":///")
    if not has_path or not scheme.startswith("sqlite") or path.startswith(("/", ":memory:")) or not path:
        return url
    return f"{scheme}:///{directory / path}"
