"""`doctor`: its checks of the system and of how worker processes start."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from executor_adapter.cli import checks, doctor, output
from executor_adapter.cli.checks import check_memory, check_system
from executor_adapter.monitoring.findings import Finding, Level, fine, wrong
from tests.cli.conftest import Command


def text_of(finding: Finding) -> str:
    return f"{finding.found}: {finding.way_out}"


@pytest.fixture
def without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove what only Linux has."""
    monkeypatch.setattr(checks, "HAS_GUARDIAN", False)
    for name in ("pidfd_open", "eventfd", "memfd_create"):
        monkeypatch.delattr(os, name)


def test_no_finding_shows_a_password(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """Doctor hides the passwords of URLs that its findings quote, for people and as JSON."""
    url = "http://me:s3same@127.0.0.1:4200/api"
    found = wrong("prefect server", f"{url} does not answer: ConnectError: no host for '{url}'", f"start {url}")
    monkeypatch.setattr(doctor, "core_checks", lambda *_: [found])
    for words in ((), ("--json",)):
        shown = command("doctor", "--no-prefect", *words).out
        assert "s3same" not in shown
        assert shown.count("http://me:(hidden)@127.0.0.1:4200/api") == 3


def test_what_doctor_asks_one_to_copy_is_whole(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """On a narrow screen no command or URL of a finding that needs action is broken by a line end."""
    monkeypatch.setattr(output, "PIPE_WIDTH", 40)
    url, words = f"http://{'long.' * 9}example.org/api", "prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api"
    findings = [fine("system", "Linux"), wrong("prefect server", f"{url} does not answer", f"run {words}")]
    monkeypatch.setattr(doctor, "core_checks", lambda *_: findings)
    lines = [line.rstrip() for line in command("doctor", "--no-prefect").out.splitlines()]
    assert lines == [
        "ok    system          Linux",
        "FAIL  prefect server",
        f"      {url} does not answer",
        f"      run {words}",
    ]


def test_the_memory_that_is_left_is_shown() -> None:
    """Doctor shows how much memory is left, and warns where it is short or not watched."""
    assert re.fullmatch(
        r"(the machine|the control group /\S*) has [\d.]+ [MG]iB of [\d.]+ [MGT]iB left", check_memory("auto").found
    )
    assert check_memory(None).level is Level.WARNING
    short = check_memory(9 << 20)
    assert short.level is Level.WARNING
    assert "executor.memory has" in short.found
    assert "no further attempt starts" in short.way_out


@pytest.mark.usefixtures("without_linux")
def test_without_linux_the_process_pool_is_weaker_and_not_missing() -> None:
    """Without Linux, doctor warns about what the process pool lacks and does not report it as missing."""
    system = check_system()
    assert system.level is Level.WARNING
    assert "process jobs run in spawned interpreters: memory_limit is refused" in text_of(system)


def test_modules_of_this_directory_are_preloaded(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Doctor tries a worker with modules of the directory in which it runs, as a flow there has them."""
    (home / "clone").mkdir()
    monkeypatch.chdir(home / "clone")
    Path("rules_of_a_user.py").touch()
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__PRELOAD", '["rules_of_a_user"]')
    findings = {found["check"]: found for found in command("doctor", "--no-prefect", "--json").json}
    assert findings["process pool"]["level"] == "fine"
    assert "rules_of_a_user'" not in caplog.text  # As in: No module named 'rules_of_a_user'.


def test_spawn_on_linux_is_a_warning(command: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the setting `spawn` on Linux, doctor says what is weaker and how to change it."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__START_METHOD", "spawn")
    findings = {found["check"]: found for found in command("doctor", "--no-prefect", "--json").json}
    start = findings["start method"]
    assert start["level"] == "warning"
    assert start["found"].startswith("spawn: memory_limit is refused")
    assert start["way_out"] == "remove executor.start_method to use a guardian"
    assert findings["process pool"]["level"] == "fine"
