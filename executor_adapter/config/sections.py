"""The sections of the settings: each key with its meaning, its default, and the values that are allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetPydanticSchema,
    SecretStr,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from executor_adapter.config.errors import describe
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import (
    HAS_CPU_AFFINITY,
    START_METHOD,
    CapacityField,
    Count,
    MemoryLimit,
    Model,
    Number,
    PoolName,
    PoolWithSlots,
    RetryPolicy,
    RetryRule,
    Seconds,
    StartMethod,
    check_start_method,
)


def _as_null(value: Any) -> Any:
    return None if value == "null" else value  # A variable of the environment has only text.


_Slots = Annotated[Count, Field(ge=1)]
_Pool = Annotated[str, GetPydanticSchema(lambda _, handler: handler(PoolWithSlots))]
MaxWorkers = Annotated[
    Annotated[_Slots | None, Tag("all")] | Annotated[dict[_Pool, _Slots], Tag("each")],
    Discriminator(lambda value: "each" if isinstance(value, Mapping) else "all"),
    BeforeValidator(_as_null),
]
SizeOfMemory = Annotated[MemoryLimit, WithJsonSchema({"type": ["integer", "string", "null"]})]
AvailableMemoryLimit = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[SizeOfMemory, Tag("size")],
    Discriminator(lambda value: "auto" if value == "auto" else "size"),
    BeforeValidator(_as_null),
    # Not the `oneOf` of a union with a discriminator: "auto" is a text, and so may a size be.
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": ["integer", "string", "null"]}]}),
]


def _as_texts(value: Any) -> Any:
    values = value if isinstance(value, list | tuple) else (value,)
    if any(isinstance(each, bool) or each is None for each in values):
        # YAML reads yes, no, on, off and null without quotes as values of its own.
        raise ValueError('must be text: write "yes", "no" and "null" in quotes')
    return tuple(str(each) if isinstance(each, int | float) else each for each in values)


def _check_name(value: str) -> str:
    # Tools and tables name directories of the lake.
    if not value or value.startswith(".") or not value.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError("must be letters, digits, '-', '_' and '.', and not begin with '.'")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class Section(Model):
    """Is the base of all sections: frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    @classmethod
    def refusal(cls, error: ValidationError, fields: Mapping[str, Any]) -> Exception:
        """Return the error that a program gets which makes this section with wrong values."""
        return ConfigurationError(describe(error, cls.__name__, fields, {}))

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        """Refuse unknown keys and missing required keys; the message names what is allowed."""
        if not isinstance(values, Mapping):
            return values
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        for key in values:
            if key not in fields:
                allowed = {"key": str(key), "allowed": sorted(fields)}
                raise PydanticCustomError("unknown_key", "{key} is not a key", allowed)
        for key, field in fields.items():
            if field.is_required() and key not in values:
                wanted = {"key": key, "wanted": field.description or ""}
                raise PydanticCustomError("missing_key", "{key} is missing", wanted)
        return values


class RuleSettings(Section, RetryRule):
    """Defines what to do after certain errors; the first rule that matches wins."""

    action: Literal["retry", "fail"] = "retry"
    """Whether another attempt follows."""
    retry_delay: Number | None = Field(default=None, ge=0)
    """Seconds before the next attempt; null: the job's own delay."""
    backoff_coefficient: Number | None = Field(default=None, ge=1)
    """Factor by which each further retry waits longer; null: the policy's own."""
    memory_factor: Number = Field(default=1.0, ge=1)
    """Factor by which the job's memory_limit grows for the next attempt."""
    alone: bool = False
    """Whether the next attempt runs while nothing else runs in its pool."""
    codes: Names = Field(min_length=1, description='the error codes that the rule is for; "*" matches all')


class RetrySettings(Section):
    """Holds the fields of a RetryPolicy that a job has no field of its own for."""

    backoff_coefficient: Number = Field(default=2.0, ge=1)
    """Factor by which each further retry waits longer than the one before."""
    max_delay: Number = Field(default=900.0, ge=0)
    """Seconds that a retry waits at most."""
    jitter: Number = Field(default=0.1, ge=0, le=1)
    """Share of the delay by which the delay varies at random."""
    crash_attempts: Count = Field(default=2, ge=0)
    """Retries after a crash, at most; past them the job is quarantined."""
    delays: tuple[Annotated[Number, Field(ge=0)], ...] = ()
    """The delay of each retry in seconds, the last one for all further retries; replaces delay and coefficient."""
    rules: tuple[RuleSettings, ...] = ()
    """Rules for certain error codes; they come before the defaults."""


class JobSettings(Section):
    """Holds the defaults for fields that a job leaves open. Times are seconds."""

    pool: PoolName = "auto"
    """The pool that it runs in: auto, coroutine, thread, process, ssh, dask or ray."""
    max_runtime: Seconds | None = 3600.0
    """Hard limit of one attempt; null: none."""
    soft_timeout: Seconds | None = None
    """Time after which SoftTimeoutError is raised inside the function, so that it can clean up; not in coroutines."""
    queue_timeout: Seconds | None = None
    """Limit from submit to the first start."""
    stall_timeout: Seconds | None = None
    """Limit of one attempt without a report of progress."""
    deadline: Seconds | None = None
    """Limit from submit to the end, all attempts and delays together."""
    retry_attempts: Count = Field(default=3, ge=0)
    """Retries after the first attempt."""
    retry_delay: Number = Field(default=60.0, ge=0)
    """Delay before the first retry; each further one is longer."""
    memory_limit: SizeOfMemory = None
    """Limit of an attempt's process tree, in bytes or as text such as "512MiB"; only for jobs of the pool `process`."""
    priority: Count = 0
    """Jobs with a higher number start first."""
    retry: RetrySettings = RetrySettings()
    """The further fields of the retry policy."""

    def given(self) -> dict[str, Any]:
        """Return the fields that were set, without defaults; `retry` is the section itself."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def over(self, other: JobSettings) -> JobSettings:
        """Return these settings, with those of `other` where these leave a field open."""
        return JobSettings.model_construct(**{**other.given(), **self.given()})


class JobTaskSettings(JobSettings):
    """Holds the defaults for options that a job task leaves open; they win over those in `job`. Times are seconds."""

    max_runtime: Seconds | None = None
    """Hard limit of one attempt; null: none."""
    retry_attempts: Count = Field(default=0, ge=0)
    """Retries after the first attempt, where Prefect's own default of retries is not set either."""


def check_soft_timeout(layers: Sequence[tuple[str, JobSettings]]) -> None:
    """Refuse a soft_timeout that is not less than max_runtime, each from the strongest layer that sets it.

    Args:
        layers: the name of each section and its settings, the strongest first.
    """
    soft, soft_key = _strongest("soft_timeout", layers)
    hard, hard_key = _strongest("max_runtime", layers)
    if soft is not None and hard is not None and soft >= hard:
        why = f"must be less than {hard_key}, which is {hard}: jobs that set neither would be refused"
        raise PydanticCustomError("together", "{why}", {"path": soft_key.split("."), "value": soft, "why": why})


def _strongest(field: str, layers: Sequence[tuple[str, JobSettings]]) -> tuple[float | None, str]:
    for key, settings in layers:
        if field in settings.model_fields_set:
            name = field if key.endswith(("job", "job_task")) else _IN_STAGES[field]
            return getattr(settings, field), f"{key}.{name}"
    return JobSettings.model_fields[field].default, f"job.{field}"


def retry_policy(section: RetrySettings, retry_attempts: int, retry_delay: float) -> RetryPolicy:
    """Return the policy of a job with these two fields and this section."""
    rest = {name: getattr(section, name) for name in RetrySettings.model_fields}
    return RetryPolicy(retry_attempts=retry_attempts, retry_delay=retry_delay, **rest)


_IN_STAGES = {"max_runtime": "job_timeout", "retry_attempts": "retry_attempts", "retry_delay": "retry_delay"}
"""The keys of a stage's section for fields of its jobs."""


class StageSettings(Section):
    """Holds the limits of one stage's jobs, which win over those in `job`. Times are seconds."""

    max_concurrent_jobs: Count = Field(default=2, ge=1)
    """Jobs of the stage that run at the same time."""
    job_timeout: Seconds = 3600.0
    """Hard limit of one attempt."""
    retry_attempts: Count = Field(default=3, ge=0)
    """Retries after the first attempt."""
    retry_delay: Number = Field(default=60.0, ge=0)
    """Delay before the first retry; each further one is longer."""

    def as_job(self) -> JobSettings:
        """Return what was set here, as the section `job` names it."""
        given = {field: key for field, key in _IN_STAGES.items() if key in self.model_fields_set}
        return JobSettings(**{field: getattr(self, key) for field, key in given.items()})


class CollectionSettings(StageSettings):
    """Holds the settings of collection jobs, which mostly wait for other servers and so run in threads."""

    max_concurrent_jobs: Count = Field(default=4, ge=1)
    """Jobs of the stage that run at the same time."""
    rate_limit_buffer: Number = Field(default=0.1, ge=0, lt=1)
    """Share of each tool's rate that is left unused."""


class ProcessingSettings(StageSettings):
    """Holds the settings of processing jobs, which compute and so run in processes."""

    batch_size: Count = Field(default=1000, ge=1)
    """Rows that a job of your own holds in memory at a time. The steps of a pipeline are given whole windows."""


class ExecutorSettings(Section):
    """Holds the settings of the executor itself."""

    max_workers: MaxWorkers = None
    """Attempts that run at the same time: a number for all pools together, or one for each pool by its name, such as
    {process: 4, thread: 64}. null, and for pools that are not named: process as many as there are processors, thread
    as many as Prefect's thread pool has (else 64), all others 1000."""
    kill_grace: Number = Field(default=5.0, ge=0)
    """Seconds between SIGTERM, which asks a job to end, and SIGKILL, which ends it."""
    start_method: Annotated[StartMethod, AfterValidator(check_start_method)] = START_METHOD
    """The start method of workers: guardian (forked in milliseconds, the Linux default) or spawn (new interpreters)."""
    preload: Names = ()
    """Modules that are imported before workers of the process pool start."""
    start_timeout: Seconds | None = 300.0
    """Seconds that a worker process may take to be ready, with its preload and its initializer; then the jobs that wait
    for it fail; null: any time."""
    max_jobs_per_worker: Count | None = Field(default=None, ge=1)
    """Jobs after which a worker process is replaced."""
    max_rss_growth: Count | None = Field(default=None, ge=1)
    """Bytes by which a worker process may grow before it is replaced."""
    memory: AvailableMemoryLimit = "auto"
    """Memory at whose end no further attempt starts, and then the largest is ended: auto (what the control group or the
    machine has), or also a limit of the program with its workers in bytes or as text such as "8GiB"; null: no guard."""
    capacity: CapacityField = None
    """What the attempts that run at the same time may take of `resources`, by name, such as {CPU: 8, license: 3}; null,
    and for what is not named: the processors, GPUs and memory of the machine."""
    nice: Count | None = Field(default=None, ge=-20, le=19)
    """Scheduling priority of worker processes, see nice(1)."""
    cpu_affinity: tuple[Count, ...] | None = None
    """Processors that worker processes may run on."""
    output: Literal["forward", "log", "drop"] = "forward"
    """What becomes of what functions print in worker processes outside of flows: forward (to the program's own stdout
    and stderr, line by line), log (by the logger executor_adapter, as INFO) or drop."""
    job_task: JobTaskSettings = JobTaskSettings()
    """Defaults of job tasks alone."""

    @model_validator(mode="after")
    def _check_start_method(self) -> Self:
        if self.start_method == "spawn" and self.max_rss_growth is not None:
            raise PydanticCustomError("place", "max_rss_growth needs start_method 'guardian': use max_jobs_per_worker")
        if self.cpu_affinity is not None and not HAS_CPU_AFFINITY:
            raise PydanticCustomError("place", "cpu_affinity is not supported on this system: remove it")
        if isinstance(self.memory, int) and not Path("/proc/meminfo").exists():
            raise PydanticCustomError("place", "memory as a size needs Linux (/proc): remove it")
        return self


class StoreSettings(Section):
    """Sets where jobs are stored."""

    url: str | None = None
    """sqlite:///jobs.db (relative to the configuration file) or postgresql://...; null: in memory."""
    lease: Seconds = 60.0
    """Seconds without a sign of life after which jobs of a host on another machine or in a container run elsewhere."""
    recover_every: Seconds | None = 10.0
    """Seconds between searches for jobs that no host runs, those queued by `jobs retry` among them; null: only when an
    executor starts."""
    pickle_arguments: bool = False
    """Whether functions and arguments are stored pickled: then also those that cannot be imported or are not JSON.
    Only pickles that are signed by a key of `pickle_key` are loaded."""
    pickle_key: SecretStr | None = None
    """Keys that sign pickles, separated by blanks: the first one signs, all are accepted. Set it in the environment.
    null: the file `executor-adapter/pickle.key` in the user's configuration directory, which is made when needed."""
    functions: Names | None = None
    """Functions that stored jobs may run here: modules, with all below them, or `module:function`; "*" for all. Those
    that the program submits are always allowed. null: all modules of the program that are not installed packages."""


class MonitoringSettings(Section):
    """Sets what is measured and when an alert is raised. Times are seconds."""

    metrics_port: Count | None = Field(default=None, ge=0, le=65535)
    """Port of /metrics (Prometheus), /live and /ready (0: a free one); null: they are not served."""
    metrics_host: str = "127.0.0.1"
    """Address of that port."""
    default_registry: bool = False
    """Whether the metrics are in prometheus_client's default registry too, for a server that the program has anyway:
    Prefect's, with PREFECT_CLIENT_METRICS_ENABLED."""
    stuck_after: Seconds = 3600.0
    """Time after which a running job is an alert."""
    failure_rate: Number = Field(default=0.5, gt=0, le=1)
    """Share of failed jobs within the window above which there is an alert."""
    near_limit: Number | None = Field(default=0.8, gt=0, lt=1)
    """Share of its max_runtime or deadline that a job has used when there is an alert before it ends; null: none."""
    window: Seconds = 3600.0
    """Time for which failed jobs count."""
    interval: Seconds = 300.0
    """Time between two checks."""


MirrorMode = Literal["auto", "never"]


class PrefectSettings(Section):
    """Sets how the schedulers use Prefect."""

    mirror: MirrorMode = "auto"
    """Whether their jobs are shown as task runs: auto (where a Prefect API is configured) or never."""
