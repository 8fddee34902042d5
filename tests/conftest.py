"""Applies to all tests: Ctrl-C interrupts them, long files start first, and any report can be sent as UTF-8."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.executor.pool_factory import worker_preloads


def pytest_configure() -> None:
    """Let SIGINT interrupt the tests even in a background job of a shell, which ignores it; some tests need it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    "acceptance/test_pipeline.py",
    "acceptance/test_cancel.py",
    "contract/test_pools.py",
    "prefect/test_mirror.py",
    "prefect/test_scheduler_mirror.py",
    "prefect/test_run_jobs_end.py",
    "prefect/test_job_task_runner.py",
    "prefect/test_both_task_kinds.py",
    "acceptance/test_deployments.py",
    "acceptance/test_ui.py",
    "prefect/test_mirror_under_load.py",
    "prefect/test_task_run_context.py",
    "contract/test_far_times.py",
    "contract/stores/test_recovery.py",
    "contract/stores/test_dying_hosts.py",
    "prefect/test_concurrent_flow_runs.py",
    "prefect/test_signals.py",
    "prefect/test_automations.py",
    "prefect/test_bootstrap.py",
    "typecheck/test_types.py",
    "contract/test_forking.py",
    "prefect/test_run_jobs.py",
    "cli/test_run.py",
    "acceptance/test_states_in_ui.py",
)
"""Files that take longest, longest first. A long file that starts last would keep one process busy alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest files to the front; the order within a file stays."""
    tests = Path(__file__).parent
    rank = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Exempt the imported test modules from garbage collection: each full collection of them takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def _no_preloads_of_prefect(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let worker processes preload Prefect in its own tests only, as in a program that does not use it.

    Collecting the tests imports `executor_adapter.prefect`, after which each new process pool would import Prefect.
    """
    if "prefect" in request.path.relative_to(Path(__file__).parent).parts:
        yield
        return
    removed = [name for name in worker_preloads if "prefect" in name.split(".")]
    worker_preloads[:] = [name for name in worker_preloads if name not in removed]
    yield
    worker_preloads.extend(removed)


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
