"""Applies to all tests: Ctrl-C interrupts them, long files start first, and any report can be sent as UTF-8."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.config.sources import CONFIG_VARIABLE
from executor_adapter.executor.pool_factory import worker_preloads


def pytest_configure() -> None:
    """Let SIGINT interrupt the tests even in a background job of a shell, which ignores it; some tests need it.

    Garbage is not collected while tests are: that would take a quarter of the time, in each process.
    """
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    "acceptance/test_pipeline.py",
    "acceptance/test_deployments.py",
    "examples/test_pages.py",
    "acceptance/test_cancel.py",
    "cli/test_run.py",
    "prefect/test_task_run_context.py",
    "prefect/test_mirror.py",
    "prefect/test_scheduler_mirror.py",
    "contract/test_forking.py",
    "prefect/test_job_task_runner.py",
    "prefect/test_both_task_kinds.py",
    "contract/stores/test_dying_hosts.py",
    "prefect/test_run_jobs.py",
    "acceptance/test_states_in_ui.py",
    "prefect/test_signals.py",
    "typecheck/test_types.py",
    "contract/stores/test_recovery.py",
    "acceptance/test_killed_flows.py",
    "prefect/test_killed_host.py",
    "contract/test_pools.py",
    "prefect/test_prefect_calls.py",
    "prefect/test_run_jobs_end.py",
    "prefect/test_mirror_under_load.py",
    "contract/process_pool/test_leftovers.py",
    "contract/test_memory_guard.py",
    "prefect/test_embedded_server.py",
    "prefect/test_bootstrap.py",
    "prefect/test_concurrent_flow_runs.py",
    "contract/test_far_times.py",
    "prefect/test_automations.py",
    "cli/test_config_commands.py",
    "cli/test_closed_output.py",
)
"""Files that take longest, longest first. A long file that starts last would keep one process busy alone."""

LAST = "contract/cluster/test_ray.py"
"""Runs when its process runs nothing more: in a program that has used Ray, what is forked later may crash in Ray's own
library (seen on Python 3.13, in the server of a `multiprocessing.Manager`)."""

OF_PARTS = ("contract", "pipeline", "prefect", "unit")
"""Folders of tests that need no configuration of a user's."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the longest files to the front, and `LAST` to the end; the order within a file stays."""
    tests = Path(__file__).parent
    rank = {tests / name: place for place, name in enumerate(LONGEST)} | {tests / LAST: len(LONGEST) + 1}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Exempt the imported test modules from garbage collection: each full collection of them takes half a second."""
    gc.enable()
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


@pytest.fixture(scope="module", autouse=True)
def _no_configuration_of_the_demo(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Let the tests of the parts run with the defaults, and not with the config.yaml of the folder they are started in.

    That is the demo's, by which each process pool imports pandas and what draws the plots.
    """
    if request.path.relative_to(Path(__file__).parent).parts[0] not in OF_PARTS:
        yield
        return
    empty = tmp_path_factory.mktemp("configuration") / "config.yaml"
    empty.touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CONFIG_VARIABLE, str(empty))
        yield


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
