"""`tools ...`: limits of tools are shown, set and removed, and tools are paused and resumed."""

from __future__ import annotations

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, ToolLimit
from executor_adapter.config import Settings
from executor_adapter.store import JobStore
from tests.cli.conftest import Command, fill, record
from tests.contract import functions
from tests.contract.conftest import wait_for


@pytest.fixture
def filled(store: JobStore) -> JobStore:
    fill(
        store,
        record("running-0001", JobStatus.RUNNING, tool_name="radar", age=30),
        record("waiting-0002", JobStatus.PENDING, tool_name="radar", age=20),
        record("done-0003", JobStatus.COMPLETED, tool_name="camera", age=10),
    )
    return store


def test_the_tools_of_live_jobs_are_listed(command: Command, filled: JobStore) -> None:
    """`tools list` shows the tools of live jobs with the jobs that run and wait, and what is set, by whom."""
    assert command("tools", "limit", "radar", "--max-concurrent", "3", "--rate", "2.5").code == 0
    assert command("tools", "pause", "camera").code == 0
    camera, radar = command("tools", "list", "--json").json
    assert (camera["tool"], camera["paused"], camera["running"]) == ("camera", True, 0)
    assert "@" in camera["paused_by"]
    assert (radar["max_concurrent"], radar["rate"], radar["running"], radar["waiting"]) == (3, 2.5, 1, 1)
    assert "@" in radar["limited_by"]
    shown = command("tools", "list").out
    assert "radar" in shown
    assert "2.5/s" in shown
    assert f"by {camera['paused_by']}" in shown


def test_a_tool_is_resumed_and_its_limit_removed(command: Command, filled: JobStore) -> None:
    """`tools resume` and `tools limit --reset` undo what was set, and say so where nothing was."""
    command("tools", "pause", "camera")
    command("tools", "limit", "camera", "-n", "2")
    assert "camera: resumed" in command("tools", "resume", "camera").out
    assert "it was not paused" in command("tools", "resume", "camera").out
    assert "own limits" in command("tools", "limit", "camera", "--reset").out
    assert [tool["tool"] for tool in command("tools", "list", "--json").json] == ["radar"]


@pytest.mark.parametrize(
    "arguments",
    [("limit", "radar"), ("limit", "radar", "-n", "0"), ("limit", "radar", "-n", "2", "--reset"), ("pause", " ")],
)
def test_a_limit_that_makes_no_sense_is_refused(command: Command, filled: JobStore, arguments: tuple[str, ...]) -> None:
    """A limit that lets no job start, none at all, or a tool without a name is refused in words."""
    refused = command("tools", *arguments)
    assert refused.code == 2
    assert refused.err


def test_a_paused_tool_starts_nothing_until_it_is_resumed(command: Command, store: JobStore) -> None:
    """A running executor starts no job of a tool that the command has paused, until it has resumed it."""
    command("tools", "pause", "radar")
    limits = {"radar": ToolLimit(max_concurrent=1)}
    with JobExecutor(2, config=Settings(), store="sqlite:///jobs.db", tool_limits=limits) as executor:
        future = executor.submit(
            Job(function=functions.add, args=(1,), tool_name="radar", pool="thread", queue_timeout=30)
        )
        wait_for(lambda: [tool["waiting"] for tool in command("tools", "list", "--json").json] == [1])
        assert not future.done()
        command("tools", "resume", "radar")
        assert future.result(200) == 2
