"""The executor block: settings of an executor, stored on the Prefect server."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from executor_adapter import Job
from executor_adapter.prefect import JobExecutorBlock


@pytest.mark.usefixtures("prefect_api")
def test_a_block_is_registered_saved_loaded_and_makes_an_executor() -> None:
    """A block loaded from the server makes an executor with its settings and job defaults."""
    JobExecutorBlock.register_type_and_schema()
    block = JobExecutorBlock(max_workers=3, kill_grace=0.5, retry_attempts=7, memory_limit="512MiB", pool="thread")
    block.save("nightly", overwrite=True)
    loaded = JobExecutorBlock.load("nightly")
    with loaded.get_executor() as executor:
        assert (executor.max_workers, executor.config.executor.kill_grace) == (3, 0.5)
        future = executor.submit(Job(function=sum, args=([1, 2],)))
        assert future.result() == 3
        assert (future.job.retry_attempts, future.job.pool) == (7, "thread")
        in_process = executor.submit(Job(function=sum, args=([1, 2],), pool="process"))
        assert in_process.result() == 3
        assert in_process.job.memory_limit == 512 * 2**20


def test_an_empty_setting_comes_from_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting that the block leaves empty comes from the configuration."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__KILL_GRACE", "2.5")
    with JobExecutorBlock(max_workers=2).get_executor() as executor:
        assert executor.config.executor.kill_grace == 2.5


@pytest.mark.parametrize("wrong", [{"max_workers": 0}, {"memory_limit": "much"}, {"retry_delay": -1}])
def test_a_wrong_value_is_refused(wrong: dict[str, object]) -> None:
    """A block refuses a value that an executor would refuse."""
    with pytest.raises(ValidationError):
        JobExecutorBlock.model_validate(wrong)
