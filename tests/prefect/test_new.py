"""`executor-adapter new`: what it writes runs, is tested and is served."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from executor_adapter.cli import main
from tests.prefect.conftest import Api
from tests.servers import running
from tests.waiting import wait_for

ALL_THREE = """
import runpy, pytest
runpy.run_path("flow.py", run_name="__main__")
assert pytest.main(["-q", "-p", "no:cacheprovider"]) == 0
runpy.run_path("serve.py", run_name="__main__")
"""
"""Does what the command says can be done with the files, in one process, since each would import Prefect."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """The folder that the command has made; it has said what to do there, and refuses to make it again."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["new", "first/flow"])
    assert not ended.value.code
    said = "".join(capsys.readouterr())
    assert "run it: cd first/flow && python flow.py" in said
    assert "with pytest, test it: cd first/flow && python -m pytest" in said
    with pytest.raises(SystemExit) as ended:
        main(["new", "first/flow"])
    assert ended.value.code == 2
    assert "first/flow is there already: give a new folder" in capsys.readouterr().err
    return tmp_path / "first" / "flow"


def test_the_files_of_a_first_flow_run(api: Api, folder: Path, tmp_path: Path) -> None:
    """The flow runs with jobs, its test passes, its deployment is served; a folder that exists is refused."""
    env = {name: value for name, value in os.environ.items() if name != "EXECUTOR_ADAPTER_CONFIG"}
    env["PYTHONUNBUFFERED"] = "1"  # What is printed is in the log before the deployment is on the server.
    log = tmp_path / "log"

    def deployed() -> bool:
        found = api.post("/deployments/filter", {"deployments": {"name": {"any_": ["hourly"]}}})
        return [each["schedules"][0]["schedule"]["cron"] for each in found] == ["0 * * * *"]

    with running([sys.executable, "-c", ALL_THREE], env=env, cwd=folder, log=log) as program:
        wait_for(lambda: deployed() or program.poll() is not None)
        said = log.read_text()
        assert "6 words" in said, said
        assert "1 passed" in said
        assert deployed()
