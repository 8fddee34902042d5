"""Metrics, scraped over real HTTP as Prometheus does."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from executor_adapter import Job, JobExecutor, JobStatus
from executor_adapter.config import MonitoringSettings, Settings
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.monitoring import port, prometheus, ready_checks
from executor_adapter.monitoring.prometheus import MAX_LABEL_VALUES, JobMetrics
from executor_adapter.store import StoreUnavailableError, open_store
from tests.insides import supervisor_of
from tests.servers import free_port
from tests.waiting import PATIENCE, wait_for

MakeExecutor = Callable[..., JobExecutor]


@pytest.fixture(autouse=True)
def _metrics_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port, "_ports", {})
    monkeypatch.setattr(prometheus, "metrics", JobMetrics())
    monkeypatch.setattr(prometheus, "REGISTRY", CollectorRegistry(auto_describe=True))


@pytest.fixture
def make_executor() -> Iterator[MakeExecutor]:
    made: list[JobExecutor] = []

    def make(port: int = 0) -> JobExecutor:
        config = Settings(monitoring=MonitoringSettings(metrics_port=port))
        made.append(JobExecutor(2, config=config))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(timeout=0)


def scrape(executor: JobExecutor) -> dict[tuple[str, frozenset[str]], float]:
    """Return the value of each sample by its name and label values."""
    assert executor.metrics_url is not None
    with urllib.request.urlopen(executor.metrics_url, timeout=PATIENCE) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        (sample.name.removeprefix("executor_adapter_"), frozenset(sample.labels.values()) - {""}): sample.value
        for family in families
        for sample in family.samples
    }


def fail() -> None:
    raise DataCollectionException("no", error_code="DATA_ERROR")


def test_the_memory_that_is_left_is_measured(make_executor: MakeExecutor) -> None:
    """The metrics have what is left of the memory where it is scarcest, and whether attempts wait for it."""
    found = scrape(make_executor())
    nothing: frozenset[str] = frozenset()
    assert found["waiting_for_memory", nothing] == 0
    assert 0 < found["memory_left_bytes", nothing] <= found["memory_limit_bytes", nothing]


def test_jobs_are_counted_as_they_end(make_executor: MakeExecutor) -> None:
    """Ended jobs are counted by status, type, tool and error code, with their times and retries."""
    executor = make_executor()
    futures = [executor.submit(Job(function=list, job_type="listing", tool_name="radar")) for _ in range(3)]
    futures.append(executor.submit(Job(function=fail)))
    again = Job(function="os:abort_", job_id="x")
    with pytest.raises(ValueError, match="cannot be imported"):
        executor.submit(again)
    retried = Job(function=_fail_once(), retry_delay=0.0)
    futures.append(executor.submit(retried))
    for future in futures:
        future.exception()
    found = scrape(executor)
    assert found["jobs_ended_total", frozenset({"completed", "listing", "radar"})] == 3
    assert found["jobs_ended_total", frozenset({"failed", "job", "DATA_ERROR"})] == 1
    assert found["retries_total", frozenset({"job", "NETWORK_ERROR"})] == 1
    assert found["job_seconds_count", frozenset({"listing", "radar"})] == 3
    assert found["queue_seconds_count", frozenset({"listing", "radar"})] == 3
    assert found["queue_seconds_bucket", frozenset({"listing", "radar", "+Inf"})] == 3
    assert found["jobs", frozenset({"running"})] == 0


def _fail_once() -> Callable[[], None]:
    calls: list[int] = []

    def function() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError

    return function


def test_gauges_show_the_current_state_at_each_scrape(make_executor: MakeExecutor) -> None:
    """Gauges show the current state at each scrape."""
    executor, go_on = make_executor(), threading.Event()
    jobs = [executor.submit(Job(function=go_on.wait)).job for _ in range(5)]
    wait_for(lambda: sum(job.status is JobStatus.RUNNING for job in jobs) == 2)
    wait_for(lambda: executor.stats().jobs_pending == 3)
    found = scrape(executor)
    assert (found["jobs", frozenset({"running"})], found["jobs", frozenset({"pending"})]) == (2, 3)
    assert found["workers_busy", frozenset()] == 2
    assert found["longest_running_seconds", frozenset()] > 0
    go_on.set()


def test_all_executors_of_a_process_share_one_port(make_executor: MakeExecutor) -> None:
    """Executors share a port; counters outlive each of them, and the port is free after the last."""
    port = free_port()
    first, second = make_executor(port), make_executor(port)
    for executor in (first, second):
        executor.run(Job(function=list))
    first.shutdown()
    assert scrape(second)["jobs_ended_total", frozenset({"completed", "job"})] == 2
    url = second.metrics_url
    assert url is not None
    second.shutdown()
    assert second.metrics_url is None
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=PATIENCE)
    third = make_executor(port)
    assert scrape(third)["jobs_ended_total", frozenset({"completed", "job"})] == 2


def test_a_port_that_is_taken_harms_no_job(make_executor: MakeExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """A port that is taken is logged with the fix, and jobs run without metrics."""
    url = make_executor().metrics_url
    assert url is not None
    port = int(url.split(":")[2].partition("/")[0])
    other = make_executor(port)
    assert other.run(Job(function=list)) == []
    assert other.metrics_url is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert f"cannot serve metrics at 127.0.0.1:{port}: " in record.getMessage()


def test_job_types_without_end_share_one_label(make_executor: MakeExecutor) -> None:
    """Job types beyond the limit share one label value."""
    executor = make_executor()
    for number in range(MAX_LABEL_VALUES + 50):
        executor.run(Job(function=list, job_type=f"type-{number}"))
    found = scrape(executor)
    types = {labels for name, labels in found if name == "jobs_ended_total"}
    assert len(types) <= MAX_LABEL_VALUES + 1
    assert found["jobs_ended_total", frozenset({"completed", "other"})] >= 50


def test_a_label_that_is_not_text_does_not_stop_the_scrapes(make_executor: MakeExecutor) -> None:
    """A job type or error code with half a surrogate pair or a null character is served with replacements."""
    executor = make_executor()
    for job_type in ("caf\udce9", "a\0b", 'a"b\n'):
        executor.run(Job(function=list, job_type=job_type))
    executor.submit(Job(function=fail_by, args=("CODE\ud800",), retry_attempts=0)).exception()
    found = scrape(executor)
    for job_type in ("caf?", "a\N{REPLACEMENT CHARACTER}b", 'a"b\n'):
        assert found["jobs_ended_total", frozenset({"completed", job_type})] == 1
    assert found["jobs_ended_total", frozenset({"failed", "job", "CODE?"})] == 1


def test_error_codes_without_end_share_one_label(make_executor: MakeExecutor) -> None:
    """Error codes beyond the limit share one label value."""
    executor = make_executor()
    for number in range(MAX_LABEL_VALUES + 50):
        executor.submit(Job(function=fail_by, args=(f"CODE-{number}",), retry_attempts=0)).exception()
    executor.run(Job(function=list))
    found = scrape(executor)
    assert found["jobs_ended_total", frozenset({"failed", "job", "other"})] >= 50
    assert found["jobs_ended_total", frozenset({"completed", "job"})] == 1


def fail_by(code: str) -> None:
    raise DataCollectionException("no", error_code=code)


def default_registry() -> dict[str, float]:
    """Return the samples of the package in prometheus_client's default registry, summed over their labels."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(generate_latest(prometheus.REGISTRY).decode()):
        for sample in family.samples:
            if sample.name.startswith("executor_adapter_"):
                name = sample.name.removeprefix("executor_adapter_")
                sums[name] = sums.get(name, 0) + sample.value
    return sums


def test_metrics_are_in_the_default_registry_where_the_settings_say_so() -> None:
    """With `default_registry` the metrics of all executors are there once, beside those of a port of their own."""
    settings = Settings(monitoring=MonitoringSettings(default_registry=True, metrics_port=0))
    before = default_registry().get("jobs_ended_total", 0)
    with JobExecutor(2, config=settings) as first, JobExecutor(1, config=settings) as second:
        for executor in (first, second):
            executor.run(Job(function=list))
        found = default_registry()
        assert found["jobs_ended_total"] == before + 2
        assert found["memory_left_bytes"] > 0
        assert scrape(first)["jobs_ended_total", frozenset({"completed", "job"})] == 2
    assert default_registry()["jobs_ended_total"] == before + 2
    assert "memory_left_bytes" not in default_registry(), "no executor is open"


def health(executor: JobExecutor, page: str) -> tuple[int, str]:
    """Return the status and the text of a page beside the metrics."""
    assert executor.metrics_url is not None
    try:
        with urllib.request.urlopen(executor.metrics_url.replace("/metrics", page), timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def live_url(executor: JobExecutor) -> str:
    assert executor.metrics_url is not None
    return executor.metrics_url.replace("/metrics", "/live")


def probe(url: str) -> tuple[int, str]:
    """Return the exit code of the probe of containers, and what it printed."""
    command = [sys.executable, "-m", "executor_adapter.monitoring.probe", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return done.returncode, done.stderr


def test_a_program_is_live_while_its_supervisor_makes_turns(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/live answers 503 and says why while the supervisor's thread hangs, and 200 before and after."""
    monkeypatch.setattr(prometheus, "TURN_SECONDS", 0.0)
    executor, go_on = make_executor(), threading.Event()
    executor.run(Job(function=list))
    wait_for(lambda: health(executor, "/live") == (200, "fine\n"))
    supervisor_of(executor).call_soon(go_on.wait)
    wait_for(lambda: health(executor, "/live")[0] == 503)
    assert probe(live_url(executor)) == (1, f"{live_url(executor)}: HTTP 503: {health(executor, '/live')[1]}")
    assert health(executor, "/live")[1].startswith("supervisor: it has made no turn for 0 s")
    assert health(executor, "/ready")[0] == 503
    go_on.set()
    wait_for(lambda: health(executor, "/live") == (200, "fine\n"))
    assert probe(live_url(executor)) == (0, "")
    url = live_url(executor)
    executor.shutdown()
    assert probe(url) == (0, ""), "nobody listens"


def test_a_program_is_ready_while_its_store_and_what_else_it_needs_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """/ready answers 503 with all that is wrong, while /live answers 200: a restart would mend none of it."""
    store, troubles = open_store("memory:"), dict[str, str]()

    def get(job_id: str) -> None:
        if "store" in troubles:
            raise StoreUnavailableError(troubles["store"])

    monkeypatch.setattr(store, "get", get)
    monkeypatch.setitem(ready_checks, "licence server", lambda: troubles.get("licence"))
    with JobExecutor(1, config=Settings(monitoring=MonitoringSettings(metrics_port=0)), store=store) as executor:
        assert health(executor, "/ready") == (200, "fine\n")
        troubles |= {"store": "jobs.db is locked", "licence": "it does not answer"}
        text = "licence server: it does not answer\nstore: jobs.db is locked\n"
        assert health(executor, "/ready") == (503, text)
        assert health(executor, "/live") == (200, "fine\n")


def test_the_executors_of_a_program_are_asked_side_by_side(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several executors that do not answer take a probe no longer than one of them."""
    all_asked, number = threading.Barrier(3), free_port()

    def check() -> None:
        all_asked.wait(PATIENCE)

    monkeypatch.setitem(ready_checks, "the others", check)
    executors = [make_executor(number) for _ in range(3)]
    assert health(executors[0], "/ready") == (200, "fine\n")


def test_without_a_port_nothing_is_served_and_nothing_counted() -> None:
    """Without a port there is no server and no observer."""
    with JobExecutor(1, config=Settings()) as executor:
        assert executor.metrics_url is None
        assert supervisor_of(executor).tracker.observers == []
