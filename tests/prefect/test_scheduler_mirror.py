"""The mirror of a scheduler's jobs: task runs if a Prefect API is configured, and no import of Prefect if not."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.settings import (
    PREFECT_API_KEY,
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLOUD_API_URL,
    temporary_settings,
)

from executor_adapter import Job, JobStatus, RetryPolicy
from executor_adapter.config import PrefectSettings, Settings
from executor_adapter.prefect import PrefectMirror
from executor_adapter.prefect.mirror.outbox import OutboxFile
from executor_adapter.scheduler import (
    CollectionScheduler,
    ProcessingScheduler,
    collection_scheduler,
    processing_scheduler,
)
from tests.prefect.conftest import Api
from tests.prefect.fake_cloud import cloud_serving
from tests.prefect.many_jobs import work
from tests.prefect.scheduler_programs import finished, until_there
from tests.prefect.server_proxy import ServerProxy
from tests.servers import new_user_env, running
from tests.waiting import PATIENCE, wait_for

Scheduler = CollectionScheduler | ProcessingScheduler
Mirrors = Callable[[], int]

ONCE = RetryPolicy(retry_attempts=1, retry_delay=0.1)
NEVER = Settings(prefect=PrefectSettings(mirror="never"))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.fixture
def mirrors() -> Mirrors:
    """Return a function that counts the mirrors that have started in this test."""

    def sending() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "prefect-mirror"}

    before = sending()
    return lambda: len(sending() - before)


async def run_jobs(scheduler: Scheduler, *jobs: Job) -> None:
    """Start the scheduler, and run the jobs to their end."""
    await scheduler.start()
    for job in jobs:
        await scheduler.job_queue.add_job(job)
    for job in jobs:
        await finished(scheduler, job.job_id)


def quick(function: Callable[..., Any] = dict, *args: Any, **fields: Any) -> Job:
    """Return a job in a thread: what is mirrored is the same in each pool, and processes would import Prefect first."""
    return Job(function=function, args=args, pool="thread", **fields)


def three_jobs(name: str) -> list[Job]:
    """Return three jobs: one completes, one completes at its second attempt, one fails."""
    return [quick(work, failures, retry=ONCE, job_id=f"{name}-{failures}") for failures in range(3)]


def check_three(api: Api, name: str) -> None:
    """Assert that the server has all states of the three jobs."""
    found = [api.named(f"work-{name}-{failures}") for failures in range(3)]
    shown = [(each["state_name"], each["run_count"], each["flow_run_id"]) for (each,) in found]
    assert shown == [("Completed", 1, None), ("Completed", 2, None), ("Failed", 2, None)]
    states = [api.state_names(each["id"]) for (each,) in found]
    assert states == [
        ["Pending", "Running", "Completed"],
        ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"],
        ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"],
    ]


def test_the_ready_made_schedulers_follow_the_configuration(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ready-made schedulers read the configuration at each start; a stop waits until all states are recorded."""
    config = tmp_path / "config.yaml"
    monkeypatch.setenv("EXECUTOR_ADAPTER_CONFIG", str(config))

    async def main() -> None:
        for mode in ("auto", "never"):
            config.write_text(f"prefect: {{mirror: {mode}}}\n")
            for scheduler in (collection_scheduler, processing_scheduler):
                await run_jobs(scheduler, *three_jobs(f"{mode}-{scheduler.section}"))
                await scheduler.stop()
        collection_scheduler.close()
        processing_scheduler.close()

    run(main)
    check_three(api, "auto-collection")
    check_three(api, "auto-processing")
    assert api.named("work-never-collection-0") == []


def test_jobs_added_before_the_start_are_mirrored(api: Api) -> None:
    """Jobs that were added before the start are mirrored with all their states."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await scheduler.job_queue.add_job(quick(job_id="early"))
        await run_jobs(scheduler)
        await finished(scheduler, "early")
        await scheduler.stop()

    run(main)
    (found,) = api.named("dict-early")
    assert api.state_names(found["id"]) == ["Pending", "Running", "Completed"]


def test_the_jobs_of_a_scheduler_started_in_a_flow_run_are_its_task_runs(api: Api) -> None:
    """The task runs of a scheduler that was started in a flow run have the flow run's id."""

    @flow
    async def nightly() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await run_jobs(scheduler, quick(job_id="of-a-flow"))
        await scheduler.stop()

    state = asyncio.run(nightly(return_state=True))
    (found,) = api.named("dict-of-a-flow")
    assert found["flow_run_id"] == str(state.state_details.flow_run_id)


@pytest.mark.parametrize("observer", ["mirror", "its method"])
def test_a_mirror_among_the_observers_is_the_only_one(prefect_api: str, observer: str, mirrors: Mirrors) -> None:
    """A scheduler with a mirror among its observers makes none of its own."""

    async def main() -> None:
        with PrefectMirror() as mirror:
            own = mirror if observer == "mirror" else mirror.__call__
            scheduler = CollectionScheduler(1, config=Settings(), observers=[own])
            await run_jobs(scheduler, quick())
            assert mirrors() == 1
            scheduler.close()
        assert mirror.report().recorded == 1

    run(main)


# --- nothing is mirrored ---


def run_program(*words: str, env: dict[str, str], cwd: Path) -> str:
    command = [sys.executable, "-m", "tests.prefect.scheduler_programs", *words]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_server_prefect_is_not_imported(tmp_path: Path) -> None:
    """Without a server Prefect is not imported, which would take a second and change the logging."""
    effects = json.loads(run_program("one_job", "unseen", env=new_user_env(tmp_path), cwd=tmp_path))
    assert effects == {"imported": False, "logging_is_as_set_up": True}


PLACES = {
    "variable": ("", ""),
    "profile": ("home/profiles.toml", 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{url}"\n'),
    "prefect.toml": ("prefect.toml", '[api]\nurl = "{url}"\n'),
    "pyproject.toml": ("pyproject.toml", '[tool.prefect.api]\nurl = "{url}"\n'),
    ".env": (".env", "PREFECT_API_URL={url}\n"),
}


@pytest.mark.nightly
@pytest.mark.parametrize("place", PLACES)
def test_an_api_is_found_wherever_prefect_can_be_configured(
    api: Api, prefect_api: str, tmp_path: Path, place: str
) -> None:
    """An API is found wherever Prefect can be configured, and the program's logging stays as it was."""
    (tmp_path / "home").mkdir()
    file, text = PLACES[place]
    env = new_user_env(tmp_path / "home", **({} if file else {"PREFECT_API_URL": prefect_api}))
    if file:
        (tmp_path / file).write_text(text.format(url=prefect_api))
    effects = json.loads(run_program("one_job", f"in-{place}", env=env, cwd=tmp_path))
    assert effects == {"imported": True, "logging_is_as_set_up": True}
    assert [found["state_name"] for found in api.named(f"dict-in-{place}")] == ["Completed"]


def test_the_jobs_of_a_scheduler_that_is_not_stopped_are_mirrored(api: Api, prefect_api: str, tmp_path: Path) -> None:
    """The program's exit waits until they are mirrored, at an API that is found where Prefect is configured."""
    _, text = PLACES["prefect.toml"]
    (tmp_path / "prefect.toml").write_text(text.format(url=prefect_api))
    effects = json.loads(run_program("unstopped", "unstopped", env=new_user_env(tmp_path), cwd=tmp_path))
    assert effects == {"imported": True, "logging_is_as_set_up": True}
    assert [found["state_name"] for found in api.named("dict-unstopped")] == ["Completed"]


def test_the_embedded_server_is_not_started_for_a_scheduler(prefect_api: str, mirrors: Mirrors) -> None:
    """Without an API URL, "auto" mirrors nothing and starts no embedded server."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        with temporary_settings({PREFECT_API_URL: None}):
            await run_jobs(scheduler, quick())
        assert mirrors() == 0
        scheduler.close()

    run(main)


def test_with_never_nothing_is_mirrored(api: Api, mirrors: Mirrors) -> None:
    """With "never" nothing is mirrored, even if an API is configured."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=NEVER)
        await run_jobs(scheduler, quick(job_id="never"))
        assert mirrors() == 0
        await scheduler.stop()

    run(main)
    assert api.named("dict-never") == []


# --- Prefect cannot be used ---


def test_jobs_run_where_prefect_cannot_be_imported(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs run where Prefect cannot be imported, and one warning states that they are not mirrored."""
    monkeypatch.setattr("executor_adapter.scheduler.mirroring.MIRROR", "not_installed")

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await run_jobs(scheduler, job := quick())
        assert job.status is JobStatus.COMPLETED
        await scheduler.stop()

    run(main)
    (warning,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning == (
        "jobs are not mirrored, since Prefect cannot be used here: ModuleNotFoundError: No module named 'not_installed'"
    )


@pytest.fixture
def _short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for an unreachable server for one second, not fourteen."""
    monkeypatch.setattr("executor_adapter.prefect.bulk.executor_mirror.DRAIN_TIMEOUT", 0.5)
    monkeypatch.setattr("executor_adapter.prefect.bulk.executor_mirror.HURRIED_CLOSE_SECONDS", 0.5)


@pytest.mark.usefixtures("_short_end")
def test_while_the_server_is_unreachable_jobs_run_and_their_final_states_are_kept(
    api: Api, prefect_api: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a reachable server jobs run, two warnings are logged, and the next scheduler sends the states."""
    proxy = ServerProxy(int(prefect_api.split(":")[2].split("/")[0]))
    url = f"http://127.0.0.1:{proxy.port}/api"

    async def away() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await run_jobs(scheduler, *[quick(job_id=f"away-{number}") for number in range(3)])
        await asyncio.to_thread(wait_for, lambda: "cannot send job states" in caplog.text)
        await scheduler.stop()

    async def there() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await scheduler.start()
        await asyncio.to_thread(wait_for, lambda: not OutboxFile(url).count())
        await scheduler.stop()

    with temporary_settings({PREFECT_API_URL: url}):
        run(away)
        warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 2
        assert f"cannot send job states to the Prefect server at {url}; retrying" in warnings[0]
        assert "3 kept on disk for the next start: away-0, away-1, away-2" in warnings[1]
        with proxy:
            run(there)
    for number in range(3):
        (found,) = api.named(f"dict-away-{number}")
        assert (found["state_name"], found["run_count"]) == ("Completed", 1)


def test_a_server_that_does_not_answer_delays_neither_start_nor_jobs_nor_close(prefect_api: str) -> None:
    """A server that does not answer delays neither start, jobs nor close, and the final state is kept."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await run_jobs(scheduler, quick())  # A request to the server would last for an hour.
        await asyncio.to_thread(scheduler.close)
        assert OutboxFile(url).count()

    with SilentServer() as (_, url):
        with temporary_settings({PREFECT_API_URL: url, PREFECT_API_REQUEST_TIMEOUT: 3600.0}):
            run(main)


class SilentServer:
    """A server that accepts connections and never answers. Entering it gives its socket and its address."""

    def __enter__(self) -> tuple[socket.socket, str]:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        return self._socket, f"http://127.0.0.1:{self._socket.getsockname()[1]}/api"

    def __exit__(self, *_: object) -> None:
        self._socket.close()


# --- an idle scheduler ---


def test_a_scheduler_without_jobs_makes_no_request(prefect_api: str, mirrors: Mirrors) -> None:
    """A scheduler without jobs has no mirror thread and no connection, not even at its end."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await scheduler.start()
        assert mirrors() == 0
        await scheduler.stop()
        scheduler.close()

    with SilentServer() as (listener, url), temporary_settings({PREFECT_API_URL: url}):
        run(main)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_scheduler_whose_jobs_are_recorded_makes_no_request(prefect_api: str) -> None:
    """A scheduler whose jobs are recorded makes no request, and its mirror uses almost no CPU time."""

    async def main() -> None:
        scheduler, before = CollectionScheduler(1, config=Settings()), threading.enumerate()
        await run_jobs(scheduler, quick())
        await asyncio.to_thread(wait_for, lambda: any(path == "/task_runs/count" for path, _ in cloud.requests))
        await asyncio.sleep(0.5)  # The mirror reads the answer, and becomes idle.
        (mirror,) = (each for each in threading.enumerate() if each.name == "prefect-mirror" and each not in before)
        clock = time.pthread_getcpuclockid(mirror.ident or 0)
        asked, used = len(cloud.requests), time.clock_gettime(clock)
        await asyncio.sleep(1)
        assert len(cloud.requests) == asked
        assert time.clock_gettime(clock) - used < 0.4
        await scheduler.stop()

    with cloud_serving() as cloud:
        settings: dict[Any, Any] = {
            PREFECT_CLOUD_API_URL: cloud.address,
            PREFECT_API_URL: f"{cloud.address}/accounts/mine/workspaces/here",
            PREFECT_API_KEY: "pnu_key",
        }
        with temporary_settings(settings):
            run(main)


# --- a store ---


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.db'}"


def test_a_job_that_another_host_takes_over_keeps_its_task_run(api: Api, store: str, tmp_path: Path) -> None:
    """A job that another host takes over keeps its task run, which is Pending in between."""
    path = tmp_path / "go"
    running_job = Job(function=until_there, args=(str(path),), job_id="handed-over")
    waiting_job = quick(work, 0, job_id="waited-on")

    async def first() -> None:
        scheduler = ProcessingScheduler(1, config=Settings(), store=store)
        await scheduler.start()
        await scheduler.job_queue.add_job(running_job)
        await scheduler.job_queue.add_job(waiting_job)
        await asyncio.to_thread(wait_for, Path(f"{path}.waits").exists)
        await scheduler.stop(timeout=0.1)
        scheduler.close()

    async def second() -> None:
        scheduler = ProcessingScheduler(1, config=Settings(), store=store)
        await scheduler.start()
        for job in (running_job, waiting_job):
            await finished(scheduler, job.job_id)
        await scheduler.stop()
        scheduler.close()

    run(first)
    names = ("until_there-handed-over", "work-waited-on")
    assert [[each["state_name"] for each in api.named(name)] for name in names] == [["Pending"], ["Pending"]]
    path.touch()
    run(second)
    ((handed_over,), (waited,)) = (api.named(name) for name in names)
    assert (handed_over["state_name"], waited["state_name"]) == ("Completed", "Completed")
    assert (handed_over["run_count"], waited["run_count"]) == (2, 1)
    assert api.state_names(handed_over["id"]) == ["Pending", "Running", "Pending", "Pending", "Retrying", "Completed"]
    assert api.state_names(waited["id"]) == ["Pending", "Pending", "Running", "Completed"]


def test_the_task_run_of_a_killed_program_is_finished_by_the_next_one(
    api: Api, prefect_api: str, store: str, tmp_path: Path
) -> None:
    """The task run of a killed program does not stay Running: the next program finishes it."""
    path = tmp_path / "go"
    env = new_user_env(tmp_path, PREFECT_API_URL=prefect_api)
    command = [sys.executable, "-m", "tests.prefect.scheduler_programs", "stored", "orphan", store, str(path)]
    with running(command, env=env, cwd=tmp_path, log=tmp_path / "log") as program:
        wait_for(lambda: [each["state_name"] for each in api.named("until_there-orphan")] == ["Running"])
        program.kill()
        program.wait()
    path.touch()

    async def main() -> None:
        scheduler = ProcessingScheduler(1, config=Settings(), store=store)
        await scheduler.start()
        await finished(scheduler, "orphan")
        await scheduler.stop()
        scheduler.close()

    run(main)
    (found,) = api.named("until_there-orphan")
    assert (found["state_name"], found["run_count"]) == ("Completed", 2)
    assert found["start_time"] < found["end_time"]
