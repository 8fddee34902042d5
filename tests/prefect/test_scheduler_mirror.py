"""The schedulers' jobs are task runs where a Prefect API is configured, and nothing is told or imported elsewhere."""

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
    PREFECT_API_URL,
    PREFECT_CLOUD_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)

from executor_adapter import Job, JobStatus, RetryPolicy
from executor_adapter.config import PrefectSettings, Settings
from executor_adapter.prefect import PrefectMirror
from executor_adapter.prefect.mirror.spool import Spool
from executor_adapter.scheduler.schedulers import (
    CollectionScheduler,
    ProcessingScheduler,
    collection_scheduler,
    processing_scheduler,
)
from tests.prefect.conftest import Api, Wait
from tests.prefect.fake_cloud import cloud_serving
from tests.prefect.many_jobs import work
from tests.prefect.scheduler_programs import over, until_there
from tests.prefect.server_proxy import ServerProxy
from tests.servers import ROOT, new_user_env, running

Scheduler = CollectionScheduler | ProcessingScheduler
Mirrors = Callable[[], int]

ONCE = RetryPolicy(retry_attempts=1, retry_delay=0.1)
NEVER = Settings(prefect=PrefectSettings(mirror="never"))
ALWAYS = Settings(prefect=PrefectSettings(mirror="always"))


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 90))


@pytest.fixture
def mirrors() -> Mirrors:
    """How many mirrors are at work that began in this test: that of job tasks outside flow runs lasts, for one."""

    def at_work() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "prefect-mirror"}

    before = at_work()
    return lambda: len(at_work() - before)


async def run_jobs(scheduler: Scheduler, *jobs: Job) -> None:
    await scheduler.start()
    for job in jobs:
        await scheduler.job_queue.add_job(job)
    for job in jobs:
        await over(scheduler, job.job_id)


def three_jobs(name: str) -> list[Job]:
    """One that completes, one that does at its second attempt, one that fails."""
    return [Job(function=work, args=(failures,), retry=ONCE, job_id=f"{name}-{failures}") for failures in range(3)]


def check_three(api: Api, name: str) -> None:
    found = [api.named(f"work-{name}-{failures}") for failures in range(3)]
    shown = [(each["state_name"], each["run_count"], each["flow_run_id"]) for (each,) in found]
    assert shown == [("Completed", 1, None), ("Completed", 2, None), ("Failed", 2, None)]
    states = [api.state_names(each["id"]) for (each,) in found]
    assert states == [
        ["Pending", "Running", "Completed"],
        ["Pending", "Running", "AwaitingRetry", "Retrying", "Completed"],
        ["Pending", "Running", "AwaitingRetry", "Retrying", "Failed"],
    ]


@pytest.mark.parametrize("kind", [CollectionScheduler, ProcessingScheduler])
def test_jobs_are_task_runs_with_all_their_states(api: Api, kind: type[Scheduler]) -> None:
    """Once the scheduler is stopped the server has recorded them all."""

    async def main() -> None:
        scheduler = kind(2, config=Settings())
        await run_jobs(scheduler, *three_jobs(kind.__name__))
        await scheduler.stop()
        scheduler.close()

    run(main)
    check_three(api, kind.__name__)


def test_those_of_the_ready_made_schedulers_are_too(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the configuration that they read at their start: a scheduler that starts again has another."""
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


def test_jobs_that_waited_for_the_start_are_pending_since_they_were_made(api: Api) -> None:
    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await scheduler.job_queue.add_job(Job(function=dict, job_id="early"))
        await run_jobs(scheduler)
        await over(scheduler, "early")
        await scheduler.stop()

    run(main)
    (found,) = api.named("dict-early")
    assert api.state_names(found["id"]) == ["Pending", "Running", "Completed"]


def test_a_scheduler_started_in_a_flow_run_has_its_task_runs_there(api: Api) -> None:
    @flow
    async def nightly() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await run_jobs(scheduler, Job(function=dict, job_id="of-a-flow"))
        await scheduler.stop()

    state = asyncio.run(nightly(return_state=True))
    (found,) = api.named("dict-of-a-flow")
    assert found["flow_run_id"] == str(state.state_details.flow_run_id)


@pytest.mark.parametrize("observer", ["mirror", "its method"])
def test_a_mirror_of_ones_own_is_the_only_one(prefect_api: str, observer: str, mirrors: Mirrors) -> None:
    async def main() -> None:
        with PrefectMirror() as mirror:
            own = mirror if observer == "mirror" else mirror.__call__
            scheduler = CollectionScheduler(1, config=ALWAYS, observers=[own])
            await run_jobs(scheduler, Job(function=dict))
            assert mirrors() == 1
            scheduler.close()
        assert mirror.report().recorded == 1

    run(main)


# --- where nothing is mirrored ---


def scheduled(*words: str, env: dict[str, str], cwd: Path) -> str:
    command = [sys.executable, "-m", "tests.prefect.scheduler_programs", *words]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_a_server_prefect_is_not_imported(tmp_path: Path) -> None:
    told = json.loads(scheduled("one_job", "unseen", env=new_user_env(tmp_path), cwd=tmp_path))
    assert told == {"imported": False, "logging_is_as_set_up": True}


PLACES = {
    "variable": ("", ""),
    "profile": ("home/profiles.toml", 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{url}"\n'),
    "prefect.toml": ("prefect.toml", '[api]\nurl = "{url}"\n'),
    "pyproject.toml": ("pyproject.toml", '[tool.prefect.api]\nurl = "{url}"\n'),
    ".env": (".env", "PREFECT_API_URL={url}\n"),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_api_is_found_wherever_prefect_is_told_of_it(api: Api, prefect_api: str, tmp_path: Path, place: str) -> None:
    """... and the program's logging stays as it was."""
    (tmp_path / "home").mkdir()
    file, text = PLACES[place]
    env = new_user_env(tmp_path / "home", **({} if file else {"PREFECT_API_URL": prefect_api}))
    if file:
        (tmp_path / file).write_text(text.format(url=prefect_api))
    told = json.loads(scheduled("one_job", f"in-{place}", env=env, cwd=tmp_path))
    assert told == {"imported": True, "logging_is_as_set_up": True}
    assert [found["state_name"] for found in api.named(f"dict-in-{place}")] == ["Completed"]


def test_a_program_that_does_not_stop_its_scheduler_tells_of_its_jobs(
    api: Api, prefect_api: str, tmp_path: Path
) -> None:
    scheduled("unstopped", "unstopped", env=new_user_env(tmp_path, PREFECT_API_URL=prefect_api), cwd=tmp_path)
    assert [found["state_name"] for found in api.named("dict-unstopped")] == ["Completed"]


def test_the_embedded_server_is_not_started_for_it(prefect_api: str, mirrors: Mirrors) -> None:
    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        with temporary_settings({PREFECT_API_URL: None}):
            await run_jobs(scheduler, Job(function=dict))
        assert mirrors() == 0
        scheduler.close()

    run(main)


def test_never_is_never(api: Api, mirrors: Mirrors) -> None:
    async def main() -> None:
        scheduler = CollectionScheduler(1, config=NEVER)
        await run_jobs(scheduler, Job(function=dict, job_id="never"))
        assert mirrors() == 0
        await scheduler.stop()

    run(main)
    assert api.named("dict-never") == []


# --- where Prefect is of no use ---


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_jobs_run_where_prefect_cannot_be_imported(
    prefect_api: str, mode: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("executor_adapter.scheduler.mirroring.MIRROR", "not_installed")

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings(prefect=PrefectSettings(mirror=mode)))
        await run_jobs(scheduler, job := Job(function=dict))
        assert job.status is JobStatus.COMPLETED
        await scheduler.stop()

    run(main)
    (said,) = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == (
        "jobs are not mirrored, since Prefect cannot be used here: ModuleNotFoundError: No module named 'not_installed'"
    )


def test_always_without_any_server_is_said(prefect_api: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        scheduler = CollectionScheduler(1, config=ALWAYS)
        with temporary_settings({PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}):
            await run_jobs(scheduler, Job(function=dict))
        scheduler.close()

    run(main)
    assert "set PREFECT_API_URL" in caplog.text


@pytest.fixture
def _short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is away is waited for a second, not fourteen."""
    monkeypatch.setattr("executor_adapter.prefect.mirror.scheduler_mirror.DRAIN_SECONDS", 0.5)
    monkeypatch.setattr("executor_adapter.prefect.mirror.scheduler_mirror.HURRIED_CLOSE_SECONDS", 0.5)


@pytest.mark.usefixtures("_short_end")
def test_while_the_server_is_away_jobs_run_and_their_ends_are_kept_for_the_next_start(
    api: Api, prefect_api: str, caplog: pytest.LogCaptureFixture, wait_for: Wait
) -> None:
    """One warning that it is away, one at the end; the next scheduler brings it, though it has no job itself."""
    proxy = ServerProxy(int(prefect_api.split(":")[2].split("/")[0]))
    url = f"http://127.0.0.1:{proxy.port}/api"

    async def away() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await run_jobs(scheduler, *[Job(function=dict, job_id=f"away-{number}") for number in range(3)])
        await asyncio.to_thread(wait_for, lambda: "is away" in caplog.text)
        await scheduler.stop()

    async def there() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await scheduler.start()
        await asyncio.to_thread(wait_for, lambda: Spool(url).is_empty)
        await scheduler.stop()

    with temporary_settings({PREFECT_API_URL: url}):
        run(away)
        warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(warnings) == 2
        assert "the Prefect server is away" in warnings[0]
        assert "3 spooled on disk for the next start: away-0, away-1, away-2" in warnings[1]
        with proxy:
            run(there)
    for number in range(3):
        (found,) = api.named(f"dict-away-{number}")
        assert (found["state_name"], found["run_count"]) == ("Completed", 1)


def test_a_server_that_does_not_answer_holds_up_neither_start_nor_jobs_nor_close(prefect_api: str) -> None:
    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        began = time.monotonic()
        await run_jobs(scheduler, Job(function=dict))
        assert time.monotonic() - began < 10  # the server would be waited for 20 s
        began = time.monotonic()
        await asyncio.to_thread(scheduler.close)
        assert time.monotonic() - began < 9
        assert not Spool(url).is_empty

    with silent() as (_, url), temporary_settings({PREFECT_API_URL: url}):
        run(main)


class silent:
    """A server that takes connections, and that is all; with its address."""

    def __enter__(self) -> tuple[socket.socket, str]:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        return self._socket, f"http://127.0.0.1:{self._socket.getsockname()[1]}/api"

    def __exit__(self, *_: object) -> None:
        self._socket.close()


# --- an idle scheduler ---


def test_a_scheduler_without_jobs_says_nothing(prefect_api: str, mirrors: Mirrors) -> None:
    """No thread, no connection, not even at its end."""

    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await scheduler.start()
        assert mirrors() == 0
        await scheduler.stop()
        scheduler.close()

    with silent() as (listener, url), temporary_settings({PREFECT_API_URL: url}):
        run(main)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_nor_does_one_whose_jobs_are_all_recorded(prefect_api: str, wait_for: Wait) -> None:
    async def main() -> None:
        scheduler = CollectionScheduler(1, config=Settings())
        await run_jobs(scheduler, Job(function=dict))
        await asyncio.to_thread(wait_for, lambda: any(path == "/task_runs/count" for path, _ in cloud.requests))
        await asyncio.sleep(0.5)  # the answer is read, and the mirror comes to rest
        asked, used = len(cloud.requests), time.process_time()
        await asyncio.sleep(2)
        assert len(cloud.requests) == asked
        assert time.process_time() - used < 0.2
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


def test_a_job_that_is_handed_over_keeps_its_task_run(api: Api, store: str, tmp_path: Path, wait_for: Wait) -> None:
    """Between the two schedulers it is Pending, and not Cancelled: it is going to run."""
    path = tmp_path / "go"
    running_job = Job(function=until_there, args=(str(path),), job_id="handed-over")
    waiting_job = Job(function=dict, job_id="waited-on")

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
            await over(scheduler, job.job_id)
        await scheduler.stop()
        scheduler.close()

    run(first)
    names = ("until_there-handed-over", "dict-waited-on")
    assert [[each["state_name"] for each in api.named(name)] for name in names] == [["Pending"], ["Pending"]]
    path.touch()
    run(second)
    ((handed_over,), (waited,)) = (api.named(name) for name in names)
    assert (handed_over["state_name"], waited["state_name"]) == ("Completed", "Completed")
    assert (handed_over["run_count"], waited["run_count"]) == (2, 1)
    assert api.state_names(handed_over["id"]) == ["Pending", "Running", "Pending", "Pending", "Retrying", "Completed"]
    assert api.state_names(waited["id"]) == ["Pending", "Pending", "Running", "Completed"]


def test_a_job_whose_program_was_killed_is_ended_by_the_next(
    api: Api, prefect_api: str, store: str, tmp_path: Path, wait_for: Wait
) -> None:
    """It is not Running for ever: the task run goes on where the job does."""
    path = tmp_path / "go"
    env = new_user_env(tmp_path, PREFECT_API_URL=prefect_api)
    command = [sys.executable, "-m", "tests.prefect.scheduler_programs", "stored", "orphan", store, str(path)]
    with running(command, env=env, cwd=ROOT, log=tmp_path / "log") as program:
        wait_for(lambda: [each["state_name"] for each in api.named("until_there-orphan")] == ["Running"])
        program.kill()
        program.wait()
    path.touch()

    async def main() -> None:
        scheduler = ProcessingScheduler(1, config=Settings(), store=store)
        await scheduler.start()
        await over(scheduler, "orphan")
        await scheduler.stop()
        scheduler.close()

    run(main)
    (found,) = api.named("until_there-orphan")
    assert (found["state_name"], found["run_count"]) == ("Completed", 2)
    assert found["start_time"] < found["end_time"]
