"""The sections of the settings: what each key means, its default, and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.job.model import MemoryLimit, PoolName
from executor_adapter.job.pool_names import HAS_CPU_AFFINITY, START_METHOD, StartMethod, check_start_method
from executor_adapter.job.retry import RetryPolicy, RetryRule
from executor_adapter.job.validation import Count, Number, Seconds


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str | int) and not isinstance(value, bool) else value


def _check_name(value: str) -> str:
    # Tools and tables name directories of the lake.
    if not value or value.startswith(".") or not value.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ValueError("must be letters, digits, '-', '_' and '.', and not begin with '.'")
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_tuple),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


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


class Section(BaseModel):
    """A part of the settings: frozen, every key known."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        check_keys(cls, values)
        return values


class RuleSettings(Section, RetryRule):
    """What to do after certain errors; the first rule that matches wins."""

    action: Literal["retry", "fail"] = "retry"
    """Whether another attempt follows."""
    retry_delay: Number | None = Field(default=None, ge=0)
    """In place of the job's."""
    backoff_coefficient: Number | None = Field(default=None, ge=1)
    """In place of the policy's."""
    memory_factor: Number = Field(default=1.0, ge=1)
    """By how much the job's memory_limit grows for the next attempt."""
    alone: bool = False
    """The next attempt runs while nothing else runs in its pool."""
    codes: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        min_length=1, description='the error codes it is for; "*" is all'
    )


class RetrySettings(Section):
    """The parts of a RetryPolicy that a job has no field of its own for."""

    backoff_coefficient: Number = Field(default=2.0, ge=1)
    """By how much each further retry waits longer than the one before."""
    max_delay: Number = Field(default=900.0, ge=0)
    """No retry waits longer, in seconds."""
    jitter: Number = Field(default=0.1, ge=0, le=1)
    """Share of the delay by which it varies at random."""
    crash_attempts: Count = Field(default=2, ge=0)
    """Of the retries, at most so many after a crash; past it the job is quarantined."""
    delays: tuple[Annotated[Number, Field(ge=0)], ...] = ()
    """Each retry's delay by itself, the last for all further ones, in place of delay and coefficient."""
    rules: tuple[RuleSettings, ...] = ()
    """What to do after certain error codes, before the defaults."""


class JobSettings(Section):
    """What a job is given where it says nothing itself; seconds."""

    pool: PoolName = "auto"
    """Where it runs: auto, coroutine, thread or process."""
    max_runtime: Seconds | None = 3600.0
    """Hard, of one attempt; null: none."""
    soft_timeout: Seconds | None = None
    """After so long SoftTimeoutError is raised inside the function, so that it can clean up; not in coroutines."""
    queue_timeout: Seconds | None = None
    """From submit to the first start."""
    stall_timeout: Seconds | None = None
    """An attempt whose function says nothing of its progress for so long is ended."""
    deadline: Seconds | None = None
    """From submit to the end, all attempts and waits together."""
    retry_attempts: Count = Field(default=3, ge=0)
    """Retries after the first attempt."""
    retry_delay: Number = Field(default=60.0, ge=0)
    """Before the first retry; each further one waits longer."""
    memory_limit: Annotated[MemoryLimit, WithJsonSchema({"type": ["integer", "string", "null"]})] = None
    """Bytes, or text such as "512MiB", of an attempt's process tree; for jobs of the pool `process` alone."""
    priority: Count = 0
    """Higher first."""
    retry: RetrySettings = RetrySettings()
    """How retries are made."""

    def given(self) -> dict[str, Any]:
        """The fields that were set, and no defaults; `retry` as the section it is."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    def over(self, other: JobSettings) -> JobSettings:
        """These settings, and where they say nothing, those of `other`."""
        return JobSettings.model_construct(**{**other.given(), **self.given()})


def check_time_before(layers: Sequence[tuple[str, JobSettings]]) -> None:
    """Refuse a soft_timeout that is not before max_runtime, both as said by the strongest of `layers`; these are
    (where it is said, what), the strongest first.
    """
    soft, soft_key = _strongest("soft_timeout", layers)
    hard, hard_key = _strongest("max_runtime", layers)
    if soft is not None and hard is not None and soft >= hard:
        why = f"must be less than {hard_key}, which is {hard}: jobs that say neither would be refused"
        raise PydanticCustomError("together", "{why}", {"path": soft_key.split("."), "value": soft, "why": why})


def _strongest(field: str, layers: Sequence[tuple[str, JobSettings]]) -> tuple[float | None, str]:
    for key, said in layers:
        if field in said.model_fields_set:
            return getattr(said, field), f"{key}.{field if key.endswith('job') else _IN_STAGES[field]}"
    return JobSettings.model_fields[field].default, f"job.{field}"


def retry_policy(section: RetrySettings, retry_attempts: int, retry_delay: float) -> RetryPolicy:
    """The policy of a job with these two fields."""
    rest = {name: getattr(section, name) for name in RetrySettings.model_fields}
    return RetryPolicy(retry_attempts=retry_attempts, retry_delay=retry_delay, **rest)


_IN_STAGES = {"max_runtime": "job_timeout", "retry_attempts": "retry_attempts", "retry_delay": "retry_delay"}
"""What a stage calls the fields of its jobs."""


class StageSettings(Section):
    """Limits of the jobs of one stage; seconds. They win over those in `job`."""

    max_concurrent_jobs: Count = Field(default=2, ge=1)
    """Jobs of the stage that run at once."""
    job_timeout: Seconds = 3600.0
    """Hard, of one attempt."""
    retry_attempts: Count = Field(default=3, ge=0)
    """Retries after the first attempt."""
    retry_delay: Number = Field(default=60.0, ge=0)
    """Before the first retry; each further one waits longer."""

    def as_job(self) -> JobSettings:
        """What was set here, in the words of a job."""
        said = {ours: key for ours, key in _IN_STAGES.items() if key in self.model_fields_set}
        return JobSettings(**{ours: getattr(self, key) for ours, key in said.items()})


class CollectionSettings(StageSettings):
    """Collection: mostly waiting for others, so in threads."""

    max_concurrent_jobs: Count = Field(default=4, ge=1)
    """Jobs of the stage that run at once."""
    rate_limit_buffer: Number = Field(default=0.1, ge=0, lt=1)
    """Share of a tool's rate that is left unused."""


class ProcessingSettings(StageSettings):
    """Processing: computing, so in processes."""

    batch_size: Count = Field(default=1000, ge=1)
    """Rows in memory at a time, of each job."""


class ExecutorSettings(Section):
    """The executor itself."""

    max_workers: Count = Field(default=4, ge=1)
    """Attempts at once, over all pools."""
    kill_grace: Number = Field(default=5.0, ge=0)
    """Seconds between asking a job to end (SIGTERM) and making it (SIGKILL)."""
    start_method: Annotated[StartMethod, AfterValidator(check_start_method)] = START_METHOD
    """How processes start: guardian (forked in milliseconds; Linux, the default there) or spawn (new interpreters)."""
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

    @model_validator(mode="after")
    def _check_start_method(self) -> Self:
        if self.start_method == "spawn" and self.max_rss_growth is not None:
            raise PydanticCustomError("place", "max_rss_growth needs start_method 'guardian': use max_jobs_per_worker")
        if self.cpu_affinity is not None and not HAS_CPU_AFFINITY:
            raise PydanticCustomError("place", "cpu_affinity is not to be had on this system: leave it out")
        return self


class StoreSettings(Section):
    """Where jobs are remembered."""

    url: str | None = None
    """sqlite:///jobs.db (relative to the file that says so), or postgresql://...; null: in memory."""
    lease: Seconds = 60.0
    """How long a host on another machine may be silent before its jobs are run elsewhere."""
    recover_every: Seconds | None = 10.0
    """Look so often for jobs that nobody runs, those queued by `jobs retry` among them; null: only when an executor
    starts."""
    pickle_arguments: bool = False
    """Store functions and arguments pickled: also what cannot be imported, or is no JSON."""


class MonitoringSettings(Section):
    """What is measured, and when it is worth an alert; seconds."""

    metrics_port: Count | None = Field(default=None, ge=0, le=65535)
    """Serve Prometheus metrics on this port (0: a free one); null: none are kept."""
    metrics_host: str = "127.0.0.1"
    """The address that is listened on."""
    stuck_after: Seconds = 3600.0
    """A job that runs longer is an alert."""
    failure_rate: Number = Field(default=0.5, gt=0, le=1)
    """A larger share of failures within the window is an alert."""
    window: Seconds = 3600.0
    """How far back failures count."""
    interval: Seconds = 300.0
    """Between two looks."""


MirrorMode = Literal["auto", "always", "never"]


class PrefectSettings(Section):
    """What the schedulers have to do with Prefect."""

    mirror: MirrorMode = "auto"
    """Whether their jobs are task runs too: auto (where a Prefect API is configured), always or never."""
