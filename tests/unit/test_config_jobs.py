"""The settings of jobs: the defaults for fields that they leave open, and the limits of their tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.config import JobSettings, RetrySettings, Settings, load_config
from executor_adapter.exceptions import ConfigurationError, InvalidJobError
from executor_adapter.executor.defaults import JobDefaults, limits_of_tools
from executor_adapter.job.validation import ToolLimit
from executor_adapter.pools.selection import check_job


def read(tmp_path: Path, text: str) -> Settings:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    return load_config(file)


def filled(settings: Settings, **fields: object) -> Job:
    job = Job(function=len, **fields)
    JobDefaults(settings).fill_in(job)
    return job


def test_every_default_of_a_job_is_a_key_with_the_same_default() -> None:
    """Every field of a job that is not the job's own has a key with the same default."""
    of_one_job = {
        *("function", "job_id", "job_type", "tool_name", "args", "kwargs"),
        "dedupe_key",
        "fresh_worker",
        "keep",
        "metadata",
        "resources",
    }
    keys = JobSettings.model_fields
    assert keys.keys() == Job.model_fields.keys() - of_one_job
    assert {name: keys[name].default for name in keys if name != "retry"} == {
        name: Job.model_fields[name].default for name in keys if name != "retry"
    }


def test_every_default_of_a_retry_policy_is_a_key_with_the_same_default() -> None:
    """Every field of a retry policy has a key with the same default."""
    keys = RetrySettings.model_fields
    assert keys.keys() | {"retry_attempts", "retry_delay"} == RetryPolicy.model_fields.keys()
    assert {name: field.default for name, field in keys.items()} == {
        name: RetryPolicy.model_fields[name].default for name in keys
    }


def test_without_settings_no_job_is_filled_in() -> None:
    """Without job settings there is nothing to fill in, and submit skips that."""
    assert not JobDefaults(Settings()).any


def test_open_fields_of_a_job_are_filled_in_and_set_ones_stay(tmp_path: Path) -> None:
    """Settings fill in the fields that a job leaves open, and change none that it sets."""
    settings = read(tmp_path, "job: {max_runtime: 5, retry_attempts: 1, pool: process, memory_limit: 1GiB}")
    job = filled(settings, retry_attempts=7)
    assert (job.max_runtime, job.retry_attempts, job.pool, job.memory_limit) == (5, 7, "process", 1 << 30)


def test_the_tool_wins_over_the_stage_and_that_over_the_section_job(tmp_path: Path) -> None:
    """A tool's settings win over its stage's, and those over the section `job`."""
    settings = read(
        tmp_path,
        "job: {max_runtime: 1, retry_delay: 1, retry_attempts: 1}\n"
        "collection: {job_timeout: 2, retry_delay: 2}\n"
        "tools: {radar: {job: {max_runtime: 3}}}\n",
    ).for_stage("collection")
    of_tool, other = filled(settings, tool_name="radar"), filled(settings, tool_name="sonar")
    assert (of_tool.max_runtime, of_tool.retry_delay, of_tool.retry_attempts) == (3, 2, 1)
    assert (other.max_runtime, other.retry_delay, other.retry_attempts) == (2, 2, 1)


def test_the_section_retry_becomes_a_policy_with_the_job_s_own_attempts(tmp_path: Path) -> None:
    """The section `retry` becomes the job's policy, with its own attempts and delay; a policy of its own stays."""
    settings = read(tmp_path, "job: {retry: {max_delay: 9, rules: [{codes: API_ERROR, action: fail}]}}")
    policy = filled(settings, retry_attempts=1, retry_delay=2.0).policy
    assert (policy.retry_attempts, policy.retry_delay, policy.max_delay) == (1, 2.0, 9.0)
    assert policy.rules[0].codes == ("API_ERROR",)
    own = RetryPolicy(max_delay=1)
    assert filled(settings, retry=own).policy is own


def test_a_default_that_the_pool_does_not_support_is_left_out(tmp_path: Path) -> None:
    """A default limit is not applied in a pool that does not support it."""
    settings = read(tmp_path, "job: {memory_limit: 1GiB, soft_timeout: 5}")

    async def on_loop() -> None: ...

    assert filled(settings).memory_limit is None
    assert filled(settings).soft_timeout == 5
    job = Job(function=on_loop)
    JobDefaults(settings).fill_in(job)
    assert job.soft_timeout is None


def test_an_executor_fills_in_jobs_at_submit(tmp_path: Path) -> None:
    """An executor fills in a job's open fields at submit."""
    with JobExecutor(1, config=read(tmp_path, "job: {max_runtime: 5}")) as executor:
        future = executor.submit(Job(function=len, args=((),)))
        assert future.result() == 0
        assert future.job.max_runtime == 5


def test_job_tasks_have_a_section_of_their_own_and_no_defaults_of_jobs(tmp_path: Path) -> None:
    """A job task's open fields come from its tool, `executor.job_task` and `job`; else it has no retry and no limit."""
    assert filled(Settings().for_job_tasks()).policy.retry_attempts == 0
    assert filled(Settings().for_job_tasks()).max_runtime is None
    settings = read(
        tmp_path,
        "job: {retry_delay: 1, max_runtime: 9}\n"
        "executor: {job_task: {max_runtime: 2, retry_attempts: 2}}\n"
        "tools: {radar: {job: {max_runtime: 3}}}\n",
    )
    job = filled(settings.for_job_tasks())
    assert (job.max_runtime, job.retry_attempts, job.retry_delay) == (2, 2, 1)
    assert filled(settings.for_job_tasks(), tool_name="radar").max_runtime == 3
    assert filled(settings).max_runtime == 9


def test_limits_of_tools_are_those_of_their_section_unless_given(tmp_path: Path) -> None:
    """A tool's limits come from its section unless they are given; the buffer has a common default."""
    settings = read(
        tmp_path,
        "collection: {rate_limit_buffer: 0.2}\n"
        "tools: {radar: {max_concurrent: 2, rate: 5}, sonar: {rate: 1, burst: 3, buffer: 0}, lidar: {}}\n",
    )
    own = ToolLimit(max_concurrent=9)
    assert limits_of_tools(settings, {"radar": own}) == {
        "radar": ToolLimit(max_concurrent=9, buffer=0.2),
        "sonar": ToolLimit(rate=1, burst=3, buffer=0),
    }
    assert limits_of_tools(settings, None)["radar"] == ToolLimit(max_concurrent=2, rate=5, buffer=0.2)


def test_an_executor_applies_the_tool_limits_of_the_settings(tmp_path: Path) -> None:
    """With `max_concurrent: 1` only one job of a tool runs at a time, although more workers are free."""
    running: list[int] = []

    def overlap() -> int:
        running.append(1)
        most = len(running)
        threads.wait(0.02)
        running.pop()
        return most

    import threading

    threads = threading.Event()
    config = read(tmp_path, "tools: {radar: {max_concurrent: 1}}")
    with JobExecutor(4, config=config) as executor:
        futures = [executor.submit(Job(function=overlap, tool_name="radar")) for _ in range(8)]
        assert [future.result() for future in futures] == [1] * 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job: {max_runtme: 5}", "job.max_runtme is not a key: did you mean max_runtime?"),
        ("job: {pool: threads}", "job.pool: 'threads' is not allowed: must be 'auto', 'coroutine', 'thread'"),
        ("job: {memory_limit: lots}", "job.memory_limit: 'lots' is not allowed: 'lots' is not a size: pass bytes"),
        ("job: {retry: {max_delays: 1}}", "job.retry.max_delays is not a key: did you mean max_delay?"),
        ("job: {retry: {rules: [{code: X}]}}", "job.retry.rules.0.code is not a key: did you mean codes?"),
        (
            "job: {retry: {rules: [{}]}}",
            "job.retry.rules.0.codes is missing: must be the error codes that the rule is for",
        ),
        ("tools: {x: {max_concurent: 1}}", "tools.x.max_concurent is not a key: did you mean max_concurrent?"),
        ("tools: {x: {rate: 0}}", "tools.x.rate: 0 is not allowed: must be greater than 0"),
        ("store: {urls: x}", "store.urls is not a key: did you mean url?"),
        ("monitoring: {failure_rate: 2}", "monitoring.failure_rate: 2 is not allowed: must be less than or equal to 1"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    """A wrong key or value is refused, and the message suggests the nearest key."""
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'settings.yaml'}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("job: {soft_timeout: 50, max_runtime: 10}", "job.soft_timeout: 50.0 {} job.max_runtime, which is 10.0"),
        ("job: {soft_timeout: 10, max_runtime: 10}", "job.soft_timeout: 10.0 {} job.max_runtime, which is 10.0"),
        ("job: {soft_timeout: 5000}", "job.soft_timeout: 5000.0 {} job.max_runtime, which is 3600.0"),
        (
            "job: {soft_timeout: 50}\ncollection: {job_timeout: 30}",
            "job.soft_timeout: 50.0 {} collection.job_timeout, which is 30.0",
        ),
        (
            "job: {soft_timeout: 50}\nprocessing: {job_timeout: 30}",
            "job.soft_timeout: 50.0 {} processing.job_timeout, which is 30.0",
        ),
        (
            "tools: {radar: {job: {soft_timeout: 40}}}\njob: {max_runtime: 30}",
            "tools.radar.job.soft_timeout: 40.0 {} job.max_runtime, which is 30.0",
        ),
        (
            "tools: {radar: {job: {max_runtime: 30}}}\njob: {soft_timeout: 40}",
            "job.soft_timeout: 40.0 {} tools.radar.job.max_runtime, which is 30.0",
        ),
        (
            "tools: {radar: {job: {soft_timeout: 40}}}\nprocessing: {job_timeout: 30}",
            "tools.radar.job.soft_timeout: 40.0 {} processing.job_timeout, which is 30.0",
        ),
        (
            "executor: {job_task: {soft_timeout: 50, max_runtime: 20}}",
            "executor.job_task.soft_timeout: 50.0 {} executor.job_task.max_runtime, which is 20.0",
        ),
        (
            "job: {pool: slurm}",
            "job.pool: 'slurm' is not allowed: must be 'auto', 'coroutine', 'thread', 'process', 'ssh', 'dask' or",
        ),
        ("tools: {x: {job: {pool: pbs}}}", "tools.x.job.pool: 'pbs' is not allowed: must be 'auto', 'coroutine'"),
        (
            "job: {memory_limit: 512}",
            "job.memory_limit: 512 is not allowed: 512 bytes is too little for a Python process: pass at",
        ),
    ],
)
def test_settings_under_which_jobs_would_be_refused_are_refused(tmp_path: Path, text: str, message: str) -> None:
    """Settings under which a job with open fields would be refused are refused themselves."""
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, text)
    expected = message.format("is not allowed: must be less than")
    assert str(caught.value).startswith(f"{tmp_path / 'settings.yaml'}: {expected}")


@pytest.mark.parametrize(
    "text",
    [
        "job: {soft_timeout: 5000, max_runtime: null}",
        "job: {max_runtime: 10, soft_timeout: null}",
        "executor: {job_task: {soft_timeout: 5000}}",
        "job: {soft_timeout: 50}\ncollection: {job_timeout: 60}\ntools: {radar: {job: {soft_timeout: 55}}}",
    ],
)
def test_a_soft_timeout_below_the_limit_is_accepted(tmp_path: Path, text: str) -> None:
    """A soft_timeout below every max_runtime that applies is accepted."""
    read(tmp_path, text)


def test_a_soft_timeout_of_the_settings_gives_way_to_a_job_s_own_limit(tmp_path: Path) -> None:
    """The settings' soft_timeout is not applied where a job's own max_runtime is not longer."""
    settings = read(tmp_path, "job: {soft_timeout: 50}")
    assert filled(settings, max_runtime=30).soft_timeout is None
    assert filled(settings, max_runtime=50).soft_timeout is None
    assert filled(settings, max_runtime=60).soft_timeout == 50
    assert filled(settings, max_runtime=None).soft_timeout == 50


def test_a_limit_of_the_settings_is_named_as_theirs(tmp_path: Path) -> None:
    """A refusal says that max_runtime comes from the settings, where it does."""
    settings = read(tmp_path, "job: {max_runtime: 10}")
    with pytest.raises(InvalidJobError, match=r"soft_timeout=50.0 .* max_runtime=10.0 of the settings: give a shorter"):
        filled(settings, soft_timeout=50)
    with pytest.raises(
        InvalidJobError, match=r"soft_timeout=50.0 leaves no time before max_runtime=11.0: use a smaller value"
    ):
        check_job(filled(settings, soft_timeout=50, max_runtime=11, pool="thread"))


def test_an_unknown_variable_of_dotenv_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable in `.env` with our prefix and an unknown section is refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("OTHERS=1\nEXECUTOR_ADAPTER_STOR__URL=memory:\n")
    with pytest.raises(ConfigurationError, match=r"^\.env: \w+_STOR__URL is not a key: did you mean \w+_STORE\?"):
        load_config()


def test_a_tool_s_limit_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the environment can set the limit of a tool."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_TOOLS__RADAR__MAX_CONCURRENT", "3")
    assert Settings().tools["radar"].max_concurrent == 3


@pytest.mark.parametrize(
    ("url", "anchored"),
    [
        ("sqlite:///jobs.db", "sqlite:///{base}/jobs.db"),
        ("sqlite:////var/jobs.db", "sqlite:////var/jobs.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("memory:", "memory:"),
    ],
)
def test_a_store_s_file_is_relative_to_the_configuration(tmp_path: Path, url: str, anchored: str) -> None:
    """A relative SQLite file is relative to the configuration file; other URLs stay."""
    settings = read(tmp_path, f"store: {{url: '{url}'}}")
    assert settings.store.url == anchored.format(base=tmp_path)
