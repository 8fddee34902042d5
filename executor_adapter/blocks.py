"""JobExecutorBlock: stores the settings of an executor on the Prefect server, where they are edited in the UI.

Prefect loads this module at each start of a server and of a worker, by the entry point in the group
`prefect.collections`. So it is light: the executor itself is imported when a block makes one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl, field_validator

from executor_adapter.config import JobSettings, load_config
from executor_adapter.job import PoolName

if TYPE_CHECKING:
    from executor_adapter.executor import JobExecutor

EXECUTOR_FIELDS = ("max_workers", "kill_grace", "preload", "max_jobs_per_worker")
JOB_FIELDS = ("pool", "max_runtime", "retry_attempts", "retry_delay", "memory_limit")


class JobExecutorBlock(Block):
    """Settings of a job executor. Empty ones come from the configuration of the machine that makes the executor.

    Example:
        Make an executor with the settings of a saved block:
        ```python
        from executor_adapter import Job
        from executor_adapter.prefect import JobExecutorBlock

        block = JobExecutorBlock.load("BLOCK_NAME")
        with block.get_executor() as executor:
            print(executor.run(Job(function=sum, args=([1, 2],))))
        ```
    """

    _block_type_name = "Job Executor"
    _block_type_slug = "job-executor"
    _description = "Settings of a JobExecutor: its workers, and defaults for its jobs."
    # There is no logo, since Prefect takes only an address: the UI would show a broken image until the project has one.
    _documentation_url = HttpUrl(
        "https://github.com/executor-adapter/executor-adapter/blob/main/docs/how-to/deployments.md"
    )

    max_workers: int | None = Field(default=None, ge=1, description="Attempts at once, over all pools.")
    max_pending: int | None = Field(default=None, ge=1, description="Jobs that may wait for their first start.")
    kill_grace: float | None = Field(
        default=None, ge=0, description="Seconds between asking a job to end and killing it."
    )
    preload: list[str] | None = Field(default=None, description="Modules imported once, before worker processes start.")
    max_jobs_per_worker: int | None = Field(
        default=None, ge=1, description="Jobs after which a worker process is replaced."
    )
    pool: PoolName | None = Field(default=None, description="Pool of jobs that do not set one.")
    max_runtime: float | None = Field(default=None, gt=0, description="Hard limit of one attempt, in seconds.")
    retry_attempts: int | None = Field(default=None, ge=0, description="Retries after the first attempt.")
    retry_delay: float | None = Field(default=None, ge=0, description="Seconds before the first retry.")
    memory_limit: str | None = Field(default=None, description='Limit of an attempt\'s process tree, such as "512MiB".')

    @field_validator("memory_limit")
    @classmethod
    def _check_memory_limit(cls, value: str | None) -> str | None:
        if value is not None:
            JobSettings(memory_limit=value)
        return value

    def get_executor(self, **options: Any) -> JobExecutor:
        """Make a JobExecutor with these settings; the configuration gives the rest, `options` are further arguments.

        Raises:
            ConfigurationError: the configuration has an unknown key or a wrong value.
        """
        from executor_adapter.executor import JobExecutor

        config = load_config()
        executor = config.executor.model_copy(update=self._given(EXECUTOR_FIELDS))
        job = JobSettings(**self._given(JOB_FIELDS)).over(config.job)
        config = config.model_copy(update={"executor": executor, "job": job})
        return JobExecutor(self.max_workers, max_pending=self.max_pending, config=config, **options)

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return given | ({"preload": tuple(given["preload"])} if "preload" in given else {})
