"""Applies to all tests: Ctrl-C interrupts them, and any report can be sent as UTF-8."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from executor_adapter.config.sources import CONFIG_VARIABLE

pytest_plugins = ["tests.scheduling"]


LOG_BYTES = 4_000


def pytest_configure() -> None:
    """Let SIGINT interrupt the tests even in a background job of a shell, which ignores it; some tests need it.

    The defaults are the configuration, and not the config.yaml of the folder that the tests are started in: that is the
    demo's, by which each process pool imports pandas and what draws the plots.

    Garbage is not collected while tests are: that would take a quarter of the time, in each process. No example of a
    property has a limit of real time.
    """
    settings.register_profile("patient", deadline=None)
    settings.load_profile("patient")
    gc.disable()
    os.environ[CONFIG_VARIABLE] = os.devnull
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Exempt the imported test modules from garbage collection: each full collection of them takes half a second."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Show beside a failure how busy the machine was, and what the processes of the test have logged into files."""
    report: pytest.TestReport = yield
    if report.failed:
        report.sections.append(("Load of the machine", " ".join(f"{load:.1f}" for load in os.getloadavg())))
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        for log in sorted(folder.rglob("*.log")) if folder else ():
            with contextlib.suppress(OSError):
                report.sections.append((f"End of {log.name}", log.read_bytes()[-LOG_BYTES:].decode(errors="replace")))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[Any]:
    """Escape lone surrogates, which some tests print or log; reports are sent as UTF-8."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {_encodable(key): _encodable(each) for key, each in value.items()}
        case list() | tuple():
            return type(value)(map(_encodable, value))
        case _:
            return value
