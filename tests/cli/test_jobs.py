"""`jobs ...` and `stats`: a store's jobs are shown, cancelled and queued again."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.cli.watch import read_frame
from executor_adapter.config import Settings
from executor_adapter.store import JobFilter, JobRecord, JobStore, SignedPickles, close_host, new_host
from tests.cli.conftest import Command, fill, progress, record
from tests.waiting import wait_for

FAILED, RUNNING, PENDING = JobStatus.FAILED, JobStatus.RUNNING, JobStatus.PENDING

QUIET = Settings.model_validate({"executor": {"output": "drop"}})
"""Settings of an executor beside the command, whose captured output is not to hold what a job prints."""


@pytest.fixture
def filled(store: JobStore) -> JobStore:
    fill(
        store,
        record("oldest-0001", job_type="collection", tool_name="radar", age=90),
        record("broken-0002", FAILED, age=80, error_code="API_ERROR", error_message="HTTP 503\nand more"),
        record("killer-0003", FAILED, age=70, error_code="WORKER_CRASHED", error_message="died", quarantined=True),
        record("moving-0004", RUNNING, age=60, progress=progress(3, 12, "page 3"), queue="collection"),
        record("newest-0005", PENDING, age=50),
    )
    return store


def ids(text: str) -> list[str]:
    return re.findall(r"^\w+-\d{4}", text, re.MULTILINE)


# --- list, show ---


def test_a_broken_row_is_shown_in_words(command: Command, filled: JobStore, home: Path) -> None:
    """`jobs list`, `jobs show` and `stats` show a row that makes no sense in words, beside the other jobs."""
    with contextlib.closing(sqlite3.connect(home / "jobs.db")) as database:
        broken = "UPDATE executor_adapter_jobs SET status = 'paused', metadata = '{' WHERE job_id = 'newest-0005'"
        database.execute(broken)
        database.commit()
    listed = command("jobs", "list")
    assert len(ids(listed.out)) == 5
    assert "DATA_ERROR" in listed.out
    assert command("stats").code == 0
    shown = command("jobs", "show", "newest-0005", "--json").json
    assert shown["unreadable"] == shown["error_message"]
    assert "its row in the store cannot be read: status is 'paused', metadata is '{'" in shown["unreadable"]
    refused = command("jobs", "retry", "newest-0005")
    assert refused.code != 0
    assert "status is 'paused'" in refused.err


def test_jobs_are_listed_newest_first(command: Command, filled: JobStore) -> None:
    """`jobs list` prints jobs with the newest first."""
    result = command("jobs", "list")
    assert result.code == 0
    assert ids(result.out) == ["newest-0005", "moving-0004", "killer-0003", "broken-0002", "oldest-0001"]
    assert "API_ERROR: HTTP 503" in result.out
    assert "and more" not in result.out
    assert "failed (quarantined)" in result.out
    assert result.out.splitlines()[-1].strip() == "5 jobs"


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--status", "failed"), ["killer-0003", "broken-0002"]),
        (("-s", "running", "-s", "pending"), ["newest-0005", "moving-0004"]),
        (("--type", "collection"), ["oldest-0001"]),
        (("--tool", "radar"), ["oldest-0001"]),
        (("--queue", "collection"), ["moving-0004"]),
        (("--quarantined",), ["killer-0003"]),
        (("--limit", "2", "--page", "2"), ["killer-0003", "broken-0002"]),
    ],
)
def test_a_list_is_filtered_and_paged(
    command: Command, filled: JobStore, options: tuple[str, ...], found: list[str]
) -> None:
    """`jobs list` filters by status, type, tool, queue and quarantine, and splits the result into pages."""
    assert ids(command("jobs", "list", *options).out) == found
    as_json = command("jobs", "list", *options, "--json").json
    assert [job["job_id"] for job in as_json["jobs"]] == found


def test_a_page_says_what_it_is_of(command: Command, filled: JobStore) -> None:
    """A page says which of how many jobs it shows."""
    assert "1 to 2 of 5 jobs; more with --page 2" in command("jobs", "list", "-n", "2").out
    assert "no page 9: there are 5 jobs" in command("jobs", "list", "--page", "9").out
    assert "no jobs" in command("jobs", "list", "--tool", "nobody's").out


def test_the_total_of_very_many_jobs_is_a_lower_bound(
    command: Command, filled: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the store stops counting, the total is shown as "more than" a number."""
    monkeypatch.setattr("executor_adapter.store.JobStore.counts_up_to", 3)
    assert "1 to 2 of more than 3 jobs; more with --page 2" in command("jobs", "list", "-n", "2").out
    assert "3 to 4 of more than 4 jobs; more with --page 3" in command("jobs", "list", "-n", "2", "-p", "2").out
    assert "5 to 5 of 5 jobs" in command("jobs", "list", "-n", "2", "-p", "3").out
    assert "no page 9: there are more than 3 jobs" in command("jobs", "list", "--page", "9").out
    as_json = command("jobs", "list", "-n", "2", "--json").json
    assert (as_json["total"], as_json["total_is_exact"]) == (3, False)


def test_one_job_is_shown_by_part_of_its_id(command: Command, filled: JobStore) -> None:
    """`jobs show` takes a part of an id and prints arguments and attempts."""
    result = command("jobs", "show", "0002")
    for fact in (
        "broken-0002",
        "failed",
        "work_of_a_user:collect",
        "'flights'",
        "10.0 s",
        "4711",
        "50 MiB",
        "and more",
    ):
        assert fact in result.out
    shown = command("jobs", "show", "moving-0004", "--json").json
    assert shown["progress"] == {"done": 3, "total": 12, "message": "page 3"}
    assert shown["arguments"] == [["flights"], {}]


def test_an_unknown_job_gives_one_line(command: Command, filled: JobStore) -> None:
    """An unknown job id gives exit code 1 and one line."""
    result = command("jobs", "show", "nobody")
    assert (result.code, result.out) == (1, "")
    assert result.err == "executor-adapter: no job has an id that contains 'nobody': see `jobs list`\n"


@pytest.mark.parametrize("words", [("--page", "9" * 20), ("--limit", "9" * 20), ("--page", "9" * 12, "-n", "9" * 12)])
def test_a_page_that_no_list_has_is_refused_in_one_line(
    command: Command, filled: JobStore, words: tuple[str, ...]
) -> None:
    """A page beyond what a database can count is refused in one line."""
    result = command("jobs", "list", *words)
    assert result.code == 2
    assert words[1] in result.err
    assert result.err.endswith("is beyond any list: give smaller numbers\n")


# --- cancel, retry, release, cleanup ---


def test_a_job_without_a_host_is_cancelled_at_once_and_one_that_is_over_is_not(
    command: Command, filled: JobStore
) -> None:
    """`jobs cancel` ends a queued job without a host at once, and refuses a finished one."""
    queued = command("jobs", "retry", "0002", "--json").json[0]["job_id"]
    assert command("jobs", "cancel", queued).code == 0
    assert command("jobs", "show", queued, "--json").json["status"] == "cancelled"
    result = command("jobs", "cancel", "oldest-0001", "--json")
    assert (result.code, result.json) == (1, [{"job_id": "oldest-0001", "done": False}])


def test_a_job_is_cancelled_in_the_process_that_runs_it(command: Command, home: Path) -> None:
    """`jobs cancel` ends a job in another process within seconds."""
    with JobExecutor(1, config=Settings(), store=f"sqlite:///{home / 'jobs.db'}") as executor:
        job = Job(function="work_of_a_user:slow", args=(60,), pool="process", job_id="far-away")
        future = executor.submit(job)
        wait_for(lambda: job.status is RUNNING)
        wait_for(lambda: command("jobs", "list", "-s", "running", "--json").json["total"] == 1)
        assert command("jobs", "cancel", "far-away").code == 0
        wait_for(lambda: job.status is JobStatus.CANCELLED)
        assert future.cancelled()
    assert command("jobs", "show", "far-away", "--json").json["error_code"] == "CANCELLED"


def test_a_job_is_queued_again_with_changes_and_a_host_runs_it(command: Command, filled: JobStore, home: Path) -> None:
    """`jobs retry` queues a changed copy without importing its function, and a host runs it."""
    result = command(
        "jobs",
        "retry",
        "0002",
        "--set",
        "max_runtime=7",
        "--set",
        'args=["weather"]',
        "--set",
        "priority=3",
        "--set",
        "pool=process",
    )
    assert result.code == 0
    assert "broken-0002 is queued again as " in result.out
    (queued,) = command("jobs", "list", "-s", "pending", "-n", "1", "--json").json["jobs"]
    assert (queued["retry_of"], queued["priority"], queued["max_runtime"]) == ("broken-0002", 3, 7.0)
    with JobExecutor(1, config=QUIET, store=f"sqlite:///{home / 'jobs.db'}") as executor:
        wait_for(lambda: executor.stats().jobs_completed)
    shown = command("jobs", "show", queued["job_id"], "--json").json
    assert (shown["status"], shown["records_processed"]) == ("completed", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("moving-0004",), "job moving-0004 is running: wait for its end, or cancel it"),
        (("killer-0003",), "job killer-0003 is quarantined: run `jobs release killer-0003` first"),
        (("0002", "--set", "max_runtime"), "give FIELD=VALUE"),
        (("0002", "--set", "colour=red"), "'colour' is not a field of Job: use one of"),
        (("0002", "--set", "pool=pond"), "pool='pond' must be 'auto', "),
        (("0002", "--set", f"priority={1 << 63}"), f"priority={1 << 63} is too large for a store"),
    ],
)
def test_what_cannot_be_retried_is_refused_with_the_way_out(
    command: Command, filled: JobStore, words: tuple[str, ...], message: str
) -> None:
    """`jobs retry` refuses what cannot run, says what to do, and queues nothing."""
    answer = command("jobs", "retry", *words)
    assert answer.code == 2
    assert message in re.sub(r"[\s│]+", " ", answer.err)
    assert command("jobs", "list", "--json").json["total"] == 5


@pytest.mark.parametrize("words", ["show", "logs", "retry", "cancel", "release"])
def test_a_part_of_several_ids_is_refused_with_their_names(command: Command, store: JobStore, words: str) -> None:
    """A part of several ids is refused with their names, also if other jobs lie between them."""
    elsewhere = [record(f"job-{n:02}", age=60, error_message="twin") for n in range(50)]
    fill(store, record("twin-old", age=90), *elsewhere, record("twin-new", age=30))
    result = command("jobs", words, "twin")
    assert (result.code, result.out) == (1, "")
    message = "executor-adapter: 'twin' is part of several ids (twin-new, twin-old): give a longer part\n"
    assert result.err == message
    assert "(job-49, job-48, job-47, ...)" in command("jobs", words, "job").err


def test_an_empty_id_is_refused(command: Command, store: JobStore) -> None:
    """An empty job id, as from an unset shell variable, is refused."""
    fill(store, record("only-one", RUNNING))
    result = command("jobs", "cancel", "")
    assert result.code == 1
    assert "give an id" in result.err


def test_two_parts_of_one_id_act_once(command: Command, filled: JobStore) -> None:
    """Two parts of the same id act on the job once."""
    assert len(command("jobs", "retry", "broken", "0002", "--json").json) == 1
    (queued,) = command("jobs", "list", "-s", "pending", "-n", "1", "--json").json["jobs"]
    assert command("jobs", "cancel", queued["job_id"], queued["job_id"]).code == 0


def test_of_several_jobs_all_are_retried_or_none(command: Command, filled: JobStore) -> None:
    """If one of several jobs cannot be retried, none is."""
    assert command("jobs", "retry", "0002", "moving-0004").code == 2
    assert command("jobs", "list", "--json").json["total"] == 5


def test_a_quarantined_job_is_released(command: Command, filled: JobStore) -> None:
    """`jobs release` ends a job's quarantine, and says so if there was none."""
    assert "released" in command("jobs", "release", "killer").out
    assert command("jobs", "list", "--quarantined", "--json").json["total"] == 0
    assert command("jobs", "release", "killer").code == 1
    assert command("jobs", "retry", "killer").code == 0


def test_old_jobs_are_deleted_and_live_and_quarantined_ones_are_not(command: Command, filled: JobStore) -> None:
    """`jobs cleanup` deletes old finished jobs, and keeps live and quarantined ones."""
    assert command("jobs", "cleanup", "--json").json == {"deleted": 0}
    assert "2 jobs deleted" in command("jobs", "cleanup", "--older-than", "10s").out
    assert ids(command("jobs", "list").out) == ["newest-0005", "moving-0004", "killer-0003"]


# --- stats, stores ---


def test_figures_are_of_the_store_s_jobs(command: Command, filled: JobStore) -> None:
    """`stats` prints counts, rates and durations of the store's jobs."""
    found = command("stats", "--json").json
    assert found["jobs"] == {
        "pending": 1, "running": 1, "retrying": 0, "completed": 1, "failed": 2, "cancelled": 0,
    }  # fmt: skip
    assert found["success_rate"] == found["failure_rate"] / 2 == pytest.approx(1 / 3)
    assert found["job_seconds_p95"] == pytest.approx(10.0)
    assert found["oldest_waiting_seconds"] == pytest.approx(50, abs=30)
    assert (found["queue_depth"], found["quarantined"]) == (1, 1)
    shown = command("stats", "--window", "5s").out
    assert re.search(r"success rate +33.3%", shown)
    assert re.search(r"failure rate, 5s +-", shown), "none ended within the window"


def test_without_a_store_the_message_says_how_to_configure_one(command: Command, home: Path) -> None:
    """Without a usable store the message says how to configure one."""
    (home / "config.yaml").write_text("")
    result = command("jobs", "list")
    assert result.code == 2
    assert "set store.url in config.yaml (sqlite:///jobs.db), or give --store URL" in result.err
    assert "visible to its own program only" in command("jobs", "list", "--store", "memory:").err


def test_a_missing_file_is_not_created(command: Command, home: Path) -> None:
    """Looking into a missing SQLite file is refused and does not create it."""
    result = command("jobs", "list", "--store", "sqlite:///elsewhere.db")
    assert result.code == 3
    assert "there is no file elsewhere.db" in result.err
    assert not (home / "elsewhere.db").exists()


def test_json_is_one_line_for_programs(command: Command, filled: JobStore) -> None:
    """--json prints one line into a pipe, and indented lines on a terminal."""
    out = command("jobs", "show", "0001", "--json").out
    assert out.count("\n") == 1
    assert json.loads(out)["job_id"] == "oldest-0001"


def test_a_job_is_queued_again_once_at_a_time(command: Command, filled: JobStore) -> None:
    """A second `jobs retry` says that the job is queued again already, and queues nothing."""
    queued = command("jobs", "retry", "broken-0002", "--json").json[0]
    again = command("jobs", "retry", "broken-0002")
    assert again.code == 1
    expected = f"broken-0002 is queued again already, as {queued['job_id']}: wait for it, or `jobs cancel"
    assert again.out.startswith(expected)
    assert command("jobs", "list", "--json").json["total"] == 6
    assert command("jobs", "cancel", queued["job_id"]).code == 0


def test_the_version_is_printed_by_an_option_as_by_the_command(command: Command) -> None:
    """`--version` prints what `version` does."""
    shown = command("--version")
    assert shown == command("version")
    assert re.search(r"^prefect-executor-adapter +\d", shown.out)


def test_a_job_whose_host_is_gone_is_marked(command: Command, store: JobStore) -> None:
    """Unfinished jobs of a host that is gone say so in each view; those of a live host and finished ones do not."""
    fill(store, record("lives", JobStatus.RUNNING))
    host = new_host()
    store.register(host, lease=600)
    jobs = [record("lost", JobStatus.RUNNING), record("ended")]
    store.write(host.host_id, [replace(job, host=host.host_id) for job in jobs], lease=600)
    assert not any(job["host_gone"] for job in command("jobs", "list", "--json").json["jobs"])
    close_host(host)
    store.leave(host.host_id)
    gone = {job["job_id"]: job["host_gone"] for job in command("jobs", "list", "--json").json["jobs"]}
    assert gone == {"lives": False, "lost": True, "ended": False}
    assert "running (host gone)" in command("jobs", "list").out
    shown = command("jobs", "show", "lost")
    assert "running (host gone)" in shown.out
    assert "a running host of queue '' that takes it over: its own is gone" in " ".join(shown.out.split())
    assert read_frame(store, JobFilter(), 5).gone == {"lost"}


def test_pickled_jobs_are_signed_with_a_new_key(
    command: Command, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that any of the keys has signed are signed with the first one; others are named, and stay as they are."""
    new, old, other = (name * 16 for name in "abc")
    for job_id, key in (("mine", new), ("old", old), ("foreign", other)):
        store.enqueue(JobRecord(job_id=job_id, call="{}", pickled=SignedPickles([key]).sign(b"pickle")))
    store.enqueue(JobRecord(job_id="plain", call="{}"))
    monkeypatch.setenv("EXECUTOR_ADAPTER_STORE__PICKLE_KEY", f"{new} {old}")
    result = command("jobs", "resign")
    assert (result.code, result.out.splitlines()[0]) == (1, "2 pickled jobs signed")
    assert "foreign: its pickle is signed by no key of ours: set store.pickle_key" in result.out
    pickles = {each.job_id: each.pickled for each in store.find().records}
    signed = {job_id for job_id, each in pickles.items() if each and SignedPickles([new]).is_signed(each)}
    assert signed == {"mine", "old"}
