"""Recovery: which jobs of a gone host run again, where, and how leases are kept."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy
from executor_adapter.config import StoreSettings
from executor_adapter.exceptions import InvalidJobError, JobCancelledError
from executor_adapter.job.ids import uuid7
from executor_adapter.store import Host, JobRecord, JobStore, StoreUnavailableError
from tests.contract import functions
from tests.contract.stores import store_jobs
from tests.contract.stores.conftest import MakeStored, leases_here, let_leases_expire, record_in, wait_for_end
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

Orphan = Callable[..., JobRecord]

GIVE = '{"function": "tests.contract.stores.store_jobs:give", "args": [1]}'
FAIL = '{"function": "tests.contract.stores.store_jobs:fail", "retry": {"retry_attempts": 1, "retry_delay": 0}}'


class HookedExecutor(JobExecutor):
    """Has a hook, so that attempts pass through the executor's methods."""

    async def pre_execution_hook(self, job: Job) -> None:
        job.metadata["hooked"] = True


@pytest.mark.parametrize("status", [JobStatus.PENDING, JobStatus.RUNNING, JobStatus.RETRYING])
@pytest.mark.parametrize("kind", [JobExecutor, HookedExecutor])
def test_live_jobs_of_a_gone_host_run_again(
    make_stored: MakeStored, store: JobStore, orphan: Orphan, status: JobStatus, kind: type[JobExecutor], url: str
) -> None:
    """Pending, running and retrying jobs of a gone host run again, also through overridden hooks."""
    record = orphan(call=GIVE, status=status, attempt=0 if status is JobStatus.PENDING else 1)
    with kind(2, store=url) as executor:
        assert executor.flush()
    again = record_in(store, record.job_id)
    assert (again.status, again.created_at) == (JobStatus.COMPLETED, record.created_at)
    assert again.attempt == record.attempt + 1
    cut_off = [attempt.error_message for attempt in again.attempts if attempt.error_code == "WORKER_CRASHED"]
    assert cut_off == ["its host died, or lost its lease"] * (status is JobStatus.RUNNING)


@pytest.mark.parametrize("call", ["claim", "write"])
def test_a_claimed_job_runs_although_the_store_fails(
    make_stored: MakeStored, store: JobStore, orphan: Orphan, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs run at the next recovery that were claimed when the answer was lost, or another job could not be ended."""
    first, broken, last = orphan(call=GIVE), orphan(call='{"function": "no.such.module:function"}'), orphan(call=GIVE)
    executor = make_stored()
    failing = executor.store
    real = getattr(failing, call)

    def fail_once(*args: Any, **options: Any) -> Any:
        claimed = real(*args, **options) if call == "claim" else None
        if claimed == []:  # Their functions are not known yet: they are imported before the next claim.
            return claimed
        monkeypatch.undo()
        assert claimed is None or len(claimed) == 3
        raise StoreUnavailableError("the connection was closed")

    monkeypatch.setattr(failing, call, fail_once)
    with pytest.raises(StoreUnavailableError):
        executor.recover()
    executor.recover()
    assert wait_for_end(store, broken.job_id).error_code == "CONFIGURATION_ERROR"
    for record in (first, last):
        assert wait_for_end(store, record.job_id).attempt == 2


def test_a_job_that_is_still_being_stopped_is_not_lost_to_a_recovery(
    make_stored: MakeStored, store: JobStore, url: str, tmp_path: Path
) -> None:
    """A recovery on request, while a job of a lost lease still runs here, takes it over only once it has ended."""
    executor, runs = make_stored(settings={"recover_every": None}), tmp_path / "runs"
    executor.submit(Job(function=store_jobs.count_run, args=(str(runs), 600), pool="process"))
    wait_for(runs.exists)
    assert executor.flush()
    ends = threading.Event()
    supervisor_of(executor).call_soon(ends.wait)
    store.leave(*leases_here(url))
    assert executor.recover() == []
    ends.set()
    wait_for(lambda: runs.stat().st_size == 2)


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_finished_jobs_do_not_run_again(make_stored: MakeStored, orphan: Orphan, status: JobStatus) -> None:
    """Finished jobs of a gone host are not recovered."""
    orphan(call=GIVE, status=status, completed_at=1.0, quarantined=status is JobStatus.FAILED)
    assert make_stored().recover() == []


def test_jobs_of_another_queue_are_left_to_their_own_hosts(make_stored: MakeStored, orphan: Orphan) -> None:
    """A host recovers the jobs of its own queue alone."""
    record = orphan(call=GIVE, queue="collection")
    assert make_stored().recover() == []
    assert [job.job_id for job in make_stored(queue="collection").recover()] == [record.job_id]


@pytest.mark.parametrize("fault", ["raise RuntimeError('on purpose')", "raise SystemExit(2)", "no = such + syntax +"])
def test_a_module_that_cannot_be_imported_does_not_block_other_jobs(
    make_stored: MakeStored,
    store: JobStore,
    orphan: Orphan,
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job whose module fails on import ends FAILED, and the other jobs are recovered."""
    name = f"module_{uuid7().replace('-', '')}"
    (tmp_path / f"{name}.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    broken = orphan(call=f'{{"function": "{name}:function"}}', status=JobStatus.PENDING, attempt=0)
    sound = orphan(call=GIVE)
    (recovered,) = make_stored().recover()
    assert recovered.job_id == sound.job_id
    record = wait_for_end(store, broken.job_id)
    assert (record.status, record.error_code) == (JobStatus.FAILED, "CONFIGURATION_ERROR")
    assert f"{name}:function" in str(record.error_message)
    assert wait_for_end(store, sound.job_id).status is JobStatus.COMPLETED


@pytest.mark.parametrize("kind", [JobExecutor, HookedExecutor])
def test_a_recovered_retry_waits_for_its_time(
    store: JobStore, orphan: Orphan, kind: type[JobExecutor], url: str
) -> None:
    """A recovered job waits until its next attempt is due, also one that hooks drive."""
    at = time.time() + 0.6
    record = orphan(call=FAIL, status=JobStatus.RETRYING, attempt=1, retry_at=at)
    with kind(2, store=url):
        again = wait_for_end(store, record.job_id)
    assert again.completed_at is not None
    assert again.completed_at >= at
    assert (again.status, again.attempt, again.error_code) == (JobStatus.FAILED, 2, "EXECUTION_ERROR")


def test_a_deadline_counts_while_no_host_runs_the_job(make_stored: MakeStored, store: JobStore, orphan: Orphan) -> None:
    """A recovered job's deadline counts from its first submit; its queue_timeout no longer applies."""
    call = GIVE[:-1] + ', "deadline": 5, "queue_timeout": 1}'
    late = orphan(call=call, created_at=time.time() - 10, started_at=time.time() - 9)
    in_time = orphan(call=call, created_at=time.time() - 2, started_at=time.time() - 1)
    make_stored().recover()
    assert wait_for_end(store, late.job_id).error_code == "DEADLINE_EXCEEDED"
    assert wait_for_end(store, in_time.job_id).status is JobStatus.COMPLETED


def test_a_job_that_cannot_run_here_ends_failed(make_stored: MakeStored, store: JobStore, orphan: Orphan) -> None:
    """A claimed job whose function is missing or was driven by Prefect ends FAILED with the reason."""
    gone = orphan(call='{"function": "no.such.module:function"}')
    driven = orphan(call=None)
    good = orphan(call=GIVE)
    make_stored().recover()
    assert wait_for_end(store, good.job_id).status is JobStatus.COMPLETED
    for record, code, message in (
        (gone, "CONFIGURATION_ERROR", "no.such.module"),
        (driven, "CONFIGURATION_ERROR", "driven from outside"),
    ):
        found = wait_for_end(store, record.job_id)
        assert (found.status, found.error_code) == (JobStatus.FAILED, code)
        assert message in (found.error_message or "")


def test_a_job_whose_resources_this_host_lacks_is_left_for_one_that_has_them(
    make_stored: MakeStored, store: JobStore, orphan: Orphan, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays in the store, and a warning says once what is missing; a host with that much runs it."""
    call = json.dumps(json.loads(GIVE) | {"resources": {"license": 2}})
    record = orphan(call=call, status=JobStatus.RETRYING, error_message="the last one")
    never_started = orphan(call=call, status=JobStatus.PENDING, attempt=0)
    lacks = make_stored(capacity={"license": 1})
    assert lacks.recover() == lacks.recover() == []
    left = record_in(store, record.job_id)
    assert (left.status, left.error_message) == (JobStatus.RETRYING, "the last one")
    lack = "resources: an attempt needs license 2, and this executor has license 1"
    assert lack in str(record_in(store, never_started.job_id).error_message)
    (said,) = (each.getMessage() for each in caplog.records if record.job_id in each.getMessage())
    assert f"job {record.job_id} of the store is left there and does not run: {lack}" in said
    recovered = make_stored(capacity={"license": 2}).recover()
    assert {job.job_id for job in recovered} == {record.job_id, never_started.job_id}
    for job in recovered:
        assert wait_for_end(store, job.job_id).status is JobStatus.COMPLETED


def test_a_job_whose_pool_this_host_lacks_is_left_for_one_that_has_it(
    make_stored: MakeStored, store: JobStore, orphan: Orphan
) -> None:
    """A job of a pool that is not configured here stays in the store, with the reason; others are recovered."""
    record = orphan(call=GIVE[:-1] + ', "pool": "ssh"}', status=JobStatus.PENDING, attempt=0)
    here = orphan(call=GIVE)
    recovered = make_stored().recover()
    assert [job.job_id for job in recovered] == [here.job_id]
    left = record_in(store, record.job_id)
    assert left.status is JobStatus.PENDING
    assert "pool='ssh' needs hosts: set cluster.ssh.hosts" in str(left.error_message)


def test_a_job_that_ran_each_time_its_host_died_is_quarantined(
    make_stored: MakeStored, store: JobStore, orphan: Orphan
) -> None:
    """A thread job that ran at too many deaths of its hosts is quarantined; a process job is not."""
    suspect = orphan(call=GIVE, crashes=2)
    innocent = orphan(call=GIVE[:-1] + ', "pool": "process"}', crashes=2)
    executor = make_stored()
    executor.recover()
    assert wait_for_end(store, innocent.job_id).status is JobStatus.COMPLETED
    record = wait_for_end(store, suspect.job_id)
    assert (record.status, record.quarantined, record.crashes) == (JobStatus.FAILED, True, 3)
    assert [job.job_id for job in executor.quarantined()] == [suspect.job_id]


def test_quarantine_outlives_the_program(make_stored: MakeStored, store: JobStore) -> None:
    """A quarantine lasts over restarts until any process releases the job."""

    def deadly() -> Job:
        policy = RetryPolicy(retry_attempts=1, retry_delay=0, crash_attempts=0)
        return Job(function=store_jobs.die, job_id="deadly", pool="process", retry=policy)

    with make_stored() as executor:
        executor.submit(deadly()).exception()
    with make_stored() as executor:
        with pytest.raises(InvalidJobError, match="quarantined"):
            executor.submit(deadly())
        assert executor.release("deadly")
        assert not executor.release("deadly")
    with make_stored() as executor:
        executor.submit(deadly()).exception()
        executor.flush()
        assert store.release("deadly")  # by another process
        executor.submit(deadly()).exception()


@pytest.mark.parametrize("requeue_on_shutdown", [False, True])
def test_jobs_cut_off_by_a_shutdown_stay_pending_with_requeue_on_shutdown(
    make_stored: MakeStored, store: JobStore, requeue_on_shutdown: bool, tmp_path: Path
) -> None:
    """Jobs that a shutdown cuts off stay PENDING with requeue_on_shutdown, otherwise they are CANCELLED."""
    file = tmp_path / "file"
    executor = make_stored(1, requeue_on_shutdown=requeue_on_shutdown)
    running = executor.submit(Job(function=store_jobs.count_run, args=(str(file), 30), pool="process")).job
    waiting = executor.submit(Job(function=store_jobs.give, args=(1,))).job
    unwanted = executor.submit(Job(function=store_jobs.give, args=(2,))).job
    wait_for(file.exists)
    assert executor.cancel(unwanted.job_id)
    executor.shutdown(timeout=0)
    assert {job.status for job in (running, waiting, unwanted)} == {JobStatus.CANCELLED}
    left = JobStatus.PENDING if requeue_on_shutdown else JobStatus.CANCELLED
    assert [record_in(store, job.job_id).status for job in (running, waiting, unwanted)] == [
        left,
        left,
        JobStatus.CANCELLED,
    ]
    recovered = make_stored(1, queue="").recover()
    assert {job.job_id for job in recovered} == ({running.job_id, waiting.job_id} if requeue_on_shutdown else set())


@pytest.mark.parametrize("kind", [JobExecutor, HookedExecutor])
@pytest.mark.parametrize("requeue_on_shutdown", [False, True])
def test_a_job_whose_attempt_fails_during_a_shutdown_is_retried_by_the_next_host(
    store: JobStore, url: str, kind: type[JobExecutor], requeue_on_shutdown: bool, tmp_path: Path
) -> None:
    """With requeue_on_shutdown it stays PENDING where its policy retries the error, otherwise it has FAILED."""
    executor, go = kind(1, store=url, requeue_on_shutdown=requeue_on_shutdown), tmp_path / "go"
    job = executor.submit(Job(function=functions.lose_connection_at, args=(str(go),))).job
    wait_for(executor.running)
    executor.shutdown(wait=False, cancel_futures=True)
    go.touch()
    executor.shutdown()
    left = record_in(store, job.job_id)
    expected = (JobStatus.PENDING, None) if requeue_on_shutdown else (JobStatus.FAILED, "NETWORK_ERROR")
    assert (left.status, left.error_code) == expected
    assert [attempt.error_code for attempt in left.attempts] == ["NETWORK_ERROR"]


def test_a_job_that_crashes_too_often_is_quarantined_during_a_shutdown(
    make_stored: MakeStored, store: JobStore, tmp_path: Path
) -> None:
    """A shutdown keeps no job out of the quarantine."""
    executor, go, policy = make_stored(1), tmp_path / "go", RetryPolicy(crash_attempts=0)
    job = executor.submit(Job(function=functions.exit_at, args=(str(go),), pool="process", retry=policy)).job
    wait_for(executor.running)
    executor.shutdown(wait=False, cancel_futures=True)
    go.touch()
    executor.shutdown()
    assert executor.quarantined() == [job]
    assert record_in(store, job.job_id).quarantined


@pytest.mark.parametrize("requeue_on_shutdown", [False, True])
def test_a_retry_that_a_shutdown_cuts_off_keeps_its_time(
    make_stored: MakeStored, store: JobStore, requeue_on_shutdown: bool
) -> None:
    """The next host waits for the rest of the delay; a job that is cancelled for good has no next attempt."""
    executor = make_stored(1, requeue_on_shutdown=requeue_on_shutdown)
    job = executor.submit(Job(function=store_jobs.lose_connection, retry_delay=600)).job
    due = wait_for(lambda: job.state.retry_at)
    executor.shutdown(cancel_futures=True)
    assert (job.status, job.retry_at) == (JobStatus.CANCELLED, None)
    assert record_in(store, job.job_id).retry_at == (due if requeue_on_shutdown else None)


def test_a_driven_job_that_a_shutdown_cuts_off_is_cancelled_for_good(make_stored: MakeStored, store: JobStore) -> None:
    """With requeue_on_shutdown it does not stay PENDING either: on another host nothing would drive it."""
    executor = make_stored(1, requeue_on_shutdown=True)
    driver = executor.drive(Job(function=store_jobs.give, args=(1,)))
    driver.acquire().result()
    executor.shutdown(wait=False, timeout=0)
    error = driver.attempt().exception()
    assert isinstance(error, JobCancelledError)
    driver.fail(error)
    executor.shutdown()
    assert record_in(store, driver.job.job_id).status is JobStatus.CANCELLED


def test_a_hooked_job_that_a_shutdown_cuts_off_stays_pending(url: str, store: JobStore, tmp_path: Path) -> None:
    """With requeue_on_shutdown another host runs it, which has the hooks that drive it."""
    executor = HookedExecutor(1, store=url, requeue_on_shutdown=True)
    job = executor.submit(Job(function=store_jobs.wait_for_file, args=(str(tmp_path / "never"),), pool="process")).job
    executor.shutdown(timeout=0)
    assert record_in(store, job.job_id).status is JobStatus.PENDING


def test_a_living_host_keeps_its_jobs(make_stored: MakeStored, url: str, tmp_path: Path) -> None:
    """On one machine a living host keeps its jobs, even when its lease has expired."""
    owner = make_stored()
    job = owner.submit(Job(function=store_jobs.wait_for_file, args=(str(tmp_path / "go"),))).job
    assert owner.flush()
    other = make_stored()
    let_leases_expire(url)
    assert other.recover() == []
    (tmp_path / "go").touch()
    wait_for(lambda: job.status is JobStatus.COMPLETED)


def test_a_host_that_lost_its_lease_stops_its_jobs_and_records_nothing(
    make_stored: MakeStored, store: JobStore, url: str, tmp_path: Path
) -> None:
    """A host whose lease was taken stops its jobs and leaves their records alone."""
    executor = make_stored(2, settings={"lease": 0.8})
    args = (str(tmp_path / "never"),)
    jobs = [executor.submit(Job(function=store_jobs.wait_for_file, args=args)).job for _ in range(3)]
    assert executor.flush()
    rival = Host(host_id=uuid7(), machine="elsewhere", pid=1, process_started=1)
    store.register(rival, lease=60)
    take_lease(store, url)
    assert {record.job_id for record in store.claim(rival, queue="")} == {job.job_id for job in jobs}
    wait_for(lambda: all(job.status is JobStatus.CANCELLED for job in jobs))
    later = executor.submit(Job(function=store_jobs.give, args=(1,))).job
    assert wait_for_end(store, later.job_id).status is JobStatus.COMPLETED
    for job in jobs:
        record = record_in(store, job.job_id)
        assert (record.host, record.status.is_terminal) == (rival.host_id, False)


@pytest.mark.parametrize("recover_every", [0.05, None])
def test_jobs_not_taken_with_the_lease_run_again_once_they_have_ended(
    make_stored: MakeStored, store: JobStore, url: str, tmp_path: Path, recover_every: float | None
) -> None:
    """Jobs that no host took with the lease run again here, once their attempts have ended."""
    executor = make_stored(2, settings={"recover_every": recover_every})
    began, go = tmp_path / "began", tmp_path / "go"
    job = executor.submit(Job(function=store_jobs.end_slowly, args=(str(began), str(go)), pool="process")).job
    wait_for(began.exists)
    assert executor.flush()
    take_lease(store, url)
    later = executor.submit(Job(function=store_jobs.give, args=(1,)))  # Its row is refused, by which the host knows.
    wait_for(lambda: job.live.assignment is not None and job.live.assignment.stop_reason is not None)
    later.result(PATIENCE)
    assert executor.flush()  # it has been a host again meanwhile, and has looked around
    assert not record_in(store, job.job_id).status.is_terminal
    go.touch()
    assert wait_for_end(store, job.job_id).status is JobStatus.COMPLETED
    assert job.status is JobStatus.CANCELLED


def take_lease(store: JobStore, url: str) -> None:
    """End the lease of this machine's only executor, as a host elsewhere does that takes it for gone."""
    (host_id,) = leases_here(url)
    store.leave(host_id)


def test_a_host_recovers_jobs_while_it_runs(make_stored: MakeStored, store: JobStore, orphan: Orphan) -> None:
    """With recover_every, a host recovers jobs that are orphaned after its start."""
    executor = make_stored(settings={"recover_every": 0.05})
    executor.recover()
    record = orphan(call=GIVE)
    assert wait_for_end(store, record.job_id).status is JobStatus.COMPLETED


def test_an_idle_host_runs_jobs_that_another_process_queued(make_stored: MakeStored, store: JobStore) -> None:
    """An idle executor finds and runs a job that another process has queued."""
    every = StoreSettings().recover_every
    assert every is not None
    executor = make_stored(settings={"recover_every": every / 200})
    executor.recover()
    store.enqueue(JobRecord(job_id="queued", call=GIVE, created_at=time.time()))
    assert wait_for_end(store, "queued").status is JobStatus.COMPLETED


def test_a_shutdown_within_a_recovery_is_no_failure(
    make_stored: MakeStored, store: JobStore, orphan: Orphan, caplog: pytest.LogCaptureFixture, mocker: Any
) -> None:
    """What was claimed by then is the next host's, and no failure of the recorder is logged."""
    executor = make_stored(settings={"recover_every": 0.05})
    claim = executor.store.claim

    def claim_and_close(*args: Any, **options: Any) -> list[JobRecord]:
        if found := claim(*args, **options):
            executor.shutdown(wait=False)
        return found

    mocker.patch.object(executor.store, "claim", claim_and_close)
    executor.recover()
    record = orphan(call=GIVE)
    wait_for(lambda: executor.is_shutting_down)
    executor.shutdown()
    assert record_in(store, record.job_id).status is JobStatus.RUNNING
    assert "failed in one turn" not in caplog.text
    make_stored().recover()
    assert wait_for_end(store, record.job_id).status is JobStatus.COMPLETED


def test_an_idle_host_recovers_jobs_after_it_lost_its_lease(
    make_stored: MakeStored, store: JobStore, url: str, orphan: Orphan
) -> None:
    """An idle host whose lease was taken registers again and recovers jobs."""
    executor = make_stored(settings={"recover_every": 0.05})
    executor.recover()
    take_lease(store, url)
    record = orphan(call=GIVE)
    assert wait_for_end(store, record.job_id).status is JobStatus.COMPLETED


def test_recover_works_after_an_idle_host_lost_its_lease(
    make_stored: MakeStored, store: JobStore, url: str, orphan: Orphan
) -> None:
    """`recover` on an idle host whose lease was taken succeeds with a new lease."""
    executor = make_stored(settings={"recover_every": None})
    executor.recover()
    take_lease(store, url)
    record = orphan(call=GIVE)
    with ThreadPoolExecutor(1) as thread:
        (job,) = thread.submit(executor.recover).result(PATIENCE)
    assert job.job_id == record.job_id


def test_an_idle_host_that_recovers_renews_its_lease(make_stored: MakeStored, store: JobStore, url: str) -> None:
    """An idle host that looks for jobs renews its lease, so that it may hold what it claims."""
    executor = make_stored(settings={"recover_every": 0.05, "lease": 2.0})
    executor.recover()
    (host_id,) = leases_here(url)
    first_end = leases_here(url)[host_id]
    wait_for(lambda: leases_here(url)[host_id] > first_end)


def test_max_pending_does_not_refuse_recovered_jobs(make_stored: MakeStored, orphan: Orphan) -> None:
    """Recovered jobs are accepted beyond `max_pending`."""
    for _ in range(5):
        orphan(call=GIVE, status=JobStatus.PENDING, attempt=0)
    assert len(make_stored(max_pending=1).recover()) == 5


def test_recovered_jobs_with_one_dedupe_key_all_run(make_stored: MakeStored, store: JobStore, orphan: Orphan) -> None:
    """Jobs of two dead hosts may have the same key: none waits for ever as the twin of another."""
    call = json.dumps(json.loads(GIVE) | {"dedupe_key": "twin"})
    ids = [orphan(call=call, status=JobStatus.PENDING, attempt=0).job_id for _ in range(3)]
    executor = make_stored()
    assert len(executor.recover()) == 3
    assert {wait_for_end(store, job_id).status for job_id in ids} == {JobStatus.COMPLETED}
    job = Job(function=store_jobs.give, args=(1,), dedupe_key="twin", pool="thread")
    assert executor.submit(job).job is job, "the key is free again"


HOST = """
import sys, time
from executor_adapter import Job, JobExecutor
from tests.contract.stores import store_jobs
with JobExecutor(2, store=sys.argv[1]) as executor:
    executor.submit(Job(function=store_jobs.count_run, args=(sys.argv[2], 600.0), job_id="long", pool=sys.argv[3]))
    executor.flush()
    print("there", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("pool", [pytest.param("thread", marks=pytest.mark.nightly), "process"])
def test_jobs_of_a_killed_program_run_in_the_next_one_at_once(
    make_stored: MakeStored, store: JobStore, url: str, tmp_path: Path, pool: str
) -> None:
    """On the same machine, a killed program's jobs are recovered without waiting for its lease."""
    file = tmp_path / "runs"
    env = os.environ | {"EXECUTOR_ADAPTER_STORE__LEASE": str(10 * PATIENCE)}
    with subprocess.Popen([sys.executable, "-c", HOST, url, str(file), pool], stdout=subprocess.PIPE, env=env) as host:
        try:
            assert host.stdout is not None
            assert host.stdout.readline() == b"there\n"
            wait_for(file.exists)
            wait_for(lambda: record_in(store, "long").attempt == 1)  # A start is written soon, not first.
            assert make_stored().recover() == []
        finally:
            host.kill()
    (job,) = make_stored().recover()
    wait_for(lambda: file.stat().st_size == 2)
    assert job.job_id == "long"
    wait_for(lambda: job.attempt == 2)  # The worker may begin a moment before the host has noted that.


def test_a_closed_host_of_this_process_is_gone(make_stored: MakeStored, store: JobStore) -> None:
    """A closed host counts as gone though its process lives and its lease was not ended."""
    from executor_adapter.store.host import close_host, new_host

    host = new_host()
    store.register(host, lease=600)
    record = JobRecord(job_id=uuid7(), call=GIVE, host=host.host_id, created_at=1.0)
    assert store.write(host.host_id, [record], lease=600).taken == []
    executor = make_stored()
    assert executor.recover() == []
    close_host(host)
    assert len(executor.recover()) == 1


def test_a_reused_pid_does_not_keep_a_host_alive(store: JobStore, make_stored: MakeStored) -> None:
    """A host is gone although another process has its pid by now."""
    from executor_adapter.store.host import this_machine

    host = Host(host_id=uuid7(), machine=this_machine(), pid=os.getppid(), process_started=1, presence="held by nobody")
    store.register(host, lease=600)
    record = JobRecord(job_id=uuid7(), call=GIVE, host=host.host_id, created_at=1.0)
    assert store.write(host.host_id, [dataclasses.replace(record)], lease=600).taken == []
    assert len(make_stored().recover()) == 1
