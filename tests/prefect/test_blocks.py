"""The executor block: settings of an executor, stored on the Prefect server."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import textwrap
import tomllib

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from executor_adapter import Job
from executor_adapter.prefect import JobExecutorBlock
from tests.servers import ROOT
from tests.waiting import PATIENCE

LOGO = ROOT / "docs" / "assets" / "logo.png"


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


class TestStandardSuite(BlockStandardTestSuite):
    """Prefect's own suite for the blocks of a collection: descriptions, addresses, a code example and a logo."""

    @pytest.fixture
    def block(self, monkeypatch: pytest.MonkeyPatch) -> type[Block]:
        """The block, with the logo that it gets when the project has a public address."""
        monkeypatch.setattr(JobExecutorBlock, "_logo_url", LOGO.as_uri())
        return JobExecutorBlock


@pytest.mark.usefixtures("prefect_api")
def test_the_code_example_of_the_block_runs() -> None:
    """The example that the UI shows for the block runs as it is written."""
    JobExecutorBlock(max_workers=1, pool="thread").save("example", overwrite=True)
    example = str(JobExecutorBlock.get_code_example()).partition("```python")[2].partition("```")[0]
    assert "get_executor()" in example
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(textwrap.dedent(example.replace("BLOCK_NAME", "example")), {})
    assert output.getvalue() == "3\n"


def test_prefect_finds_the_block_without_an_import_of_it() -> None:
    """A process that has imported nothing of this package loads the collection by its entry point."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (module,) = project["entry-points"]["prefect.collections"].values()
    code = f"""
import sys
import {module} as blocks
heavy = {{"executor_adapter.executor", "executor_adapter.supervision", "executor_adapter.prefect"}}
print(blocks.JobExecutorBlock.get_block_type_slug(), sorted(heavy & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE)
    assert done.stdout == "job-executor []\n", done.stderr
