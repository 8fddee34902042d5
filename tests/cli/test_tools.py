"""`tools ...`: limits of tools are shown, set and removed, and tools are paused and resumed."""

from __future__ import annotations

from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, ToolLimit
from executor_adapter.cli.waits import reason_of_tool
from executor_adapter.config import Settings
from executor_adapter.store import JobStore, SharedTools, ToolControl, ToolUse
from tests.cli.conftest import Command, fill, record
from tests.contract import functions
from tests.waiting import PATIENCE, wait_for


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
    """`tools resume` and `tools limit --reset` undo what was set."""
    command("tools", "pause", "camera")
    command("tools", "limit", "camera", "-n", "2")
    assert "camera: resumed" in command("tools", "resume", "camera").out
    assert "own limits" in command("tools", "limit", "camera", "--reset").out
    assert [tool["tool"] for tool in command("tools", "list", "--json").json] == ["radar"]


@pytest.mark.parametrize(
    "arguments",
    [("limit", "radar"), ("limit", "radar", "-n", "0"), ("limit", "radar", "-n", "2", "--reset")],
)
def test_a_limit_that_makes_no_sense_is_refused(command: Command, filled: JobStore, arguments: tuple[str, ...]) -> None:
    """A limit that lets no job start, or none at all, is refused in words."""
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
        assert future.result(PATIENCE) == 2


def test_what_a_job_waits_for_is_shown(command: Command, store: JobStore) -> None:
    """`jobs show` and `tools list` say what a waiting job waits for, whatever it is, and nothing of one that runs."""
    waiting = {"tool_name": "radar", "age": 20, "host": "a-host"}
    fill(
        store,
        record("running-0001", JobStatus.RUNNING, tool_name="camera", age=30),
        record("waiting-0002", JobStatus.PENDING, **waiting),
        record("retried-0003", JobStatus.RETRYING, retry_at=4e9, **waiting),
    )
    store.enqueue(record("unowned-0004", JobStatus.PENDING, queue="nightly", age=5))

    def shown(part: str) -> str:
        return str(command("jobs", "show", part, "--json").json["waits_for"])

    assert shown("running") == "None"
    assert "a free worker of its host" in shown("waiting")
    assert "its next try" in shown("retried")
    assert "a running host of queue 'nightly'" in shown("unowned")
    command("tools", "pause", "radar")
    assert "`tools resume radar`" in shown("waiting")
    assert "waits for" in command("jobs", "show", "waiting").out
    camera, radar = command("tools", "list", "--json").json
    assert (camera["waits_for"], radar["waits_for"].startswith("`tools resume radar`")) == (None, True)


@pytest.mark.parametrize(
    ("control", "use", "reason"),
    [
        ({"closed_until": 200.0}, {}, "the end of the pause that api asked for"),
        ({"limit": ToolLimit(max_concurrent=2)}, {"held": 2}, "a slot of api: 2 of 2 are taken"),
        ({}, {"held": 1, "max_concurrent": 1}, "a slot of api: 1 of 1 are taken"),
        ({"limit": ToolLimit(rate=0.5)}, {"waits_since": 99.0}, "its turn: api starts 0.5 jobs a second"),
        ({}, {"held": 1, "max_concurrent": 2}, "None"),
    ],
)
def test_a_tool_says_why_it_holds_jobs_back(control: dict[str, Any], use: dict[str, Any], reason: str) -> None:
    """A pause that the remote side asked for, a full limit and a rate are each named."""
    uses = [ToolUse(tool_name="api", host_id="a-host", **use)]
    shared = SharedTools(now=100.0, controls={"api": ToolControl(tool_name="api", **control)}, uses=uses)
    assert str(reason_of_tool("api", shared)).startswith(reason)
