"""Tests jobs on hosts that are reached by a real ssh server: what is promised there, and what happens to lost nodes."""

from __future__ import annotations

import importlib
import itertools
import logging
import os
import re
import shlex
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import pytest

from executor_adapter import Job, JobExecutor, JobFuture, RetryPolicy
from executor_adapter.cli.checks import check_cluster
from executor_adapter.config import ClusterSettings, Settings, SshHostSettings, SshSettings
from executor_adapter.exceptions import InvalidJobError, JobSerializationError, JobTimeoutError, WorkerUnavailableError
from executor_adapter.monitoring import Level
from executor_adapter.pools.cluster.descriptions import compare_node, describe
from executor_adapter.pools.cluster.program import Source, load
from executor_adapter.pools.cluster.ssh import SshHosts
from executor_adapter.worker.call import REFERENCE
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import MakeSshExecutor, Runs, guardian_of
from tests.contract.cluster.sshd import ROOT, SshServer
from tests.contract.functions import wait_for_file
from tests.waiting import PATIENCE, wait_for

AT_ONCE = RetryPolicy(retry_delay=0.0, jitter=0.0)


def run_on_both_hosts(executor: JobExecutor, folder: Path) -> list[JobFuture]:
    """Run two jobs at once, so that both hosts have an agent and a worker; return their futures."""
    go = folder / "go"
    both = [executor.submit(Job(function=wait_for_file, args=(str(go),), pool="ssh")) for _ in range(2)]
    wait_for(lambda: all(future.running() for future in both))
    go.touch()
    for future in both:
        future.result(timeout=PATIENCE)
    return both


def test_jobs_run_on_all_hosts_with_the_limits_of_a_process_pool(
    make_ssh_executor: MakeSshExecutor, tmp_path: Path
) -> None:
    """Jobs run on both hosts, each attempt names its node, and a job past its limit is dead."""
    executor = make_ssh_executor()
    both = run_on_both_hosts(executor, tmp_path)
    assert {future.job.attempts[0].node for future in both} == {"node1", "node2"}
    late = Job(function=time.sleep, args=(30,), pool="ssh", max_runtime=0.3, retry_attempts=0)
    with pytest.raises(JobTimeoutError, match=r"max_runtime=0\.3"):
        executor.submit(late).result(timeout=PATIENCE)
    assert late.attempts[0].kill_seconds is not None
    many = executor.map(functions.size_of, [bytes(size) for size in range(300)], pool="ssh")
    assert [result.value for result in many] == list(range(300))


def test_large_values_pass_in_both_directions(make_ssh_executor: MakeSshExecutor) -> None:
    """Large arguments and results arrive whole, and a job that is cancelled meanwhile harms no other."""
    executor = make_ssh_executor(1)
    size = 20_000_000
    cancelled = executor.submit(Job(function=functions.size_of, args=(bytes(size),), pool="ssh"))
    sent = executor.submit(Job(function=functions.size_of, args=(bytes(size + 1),), pool="ssh"))
    returned = executor.submit(Job(function=functions.zeros, args=(size,), pool="ssh"))
    cancelled.cancel()
    assert sent.result(timeout=PATIENCE) == size + 1
    assert returned.result(timeout=PATIENCE) == bytes(size)


def test_a_filter_that_raises_costs_a_log_record_and_no_job(
    make_ssh_executor: MakeSshExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job on a host whose log record a filter of the program fails at completes: its result is behind that."""

    def fail(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError(record.getMessage())

    logger = logging.getLogger("raises.on.host")
    logger.addFilter(fail)
    job = Job(function=functions.warn, args=("raises.on.host", "of no use"), pool="ssh")
    assert make_ssh_executor(1).submit(job).result(timeout=PATIENCE) == "of no use"
    logger.removeFilter(fail)
    assert "ZeroDivisionError: of no use" in capsys.readouterr().err


def test_a_lost_agent_s_job_is_retried_once_nothing_of_it_is_alive(
    make_ssh_executor: MakeSshExecutor, runs: Runs, tmp_path: Path
) -> None:
    """The job of an agent that is killed is NODE_LOST, which is no crash, and its retry overlaps with nothing of it."""
    executor = make_ssh_executor(lost_after=3600.0)  # Silence is not what tells it.
    run_on_both_hosts(executor, tmp_path)
    job = Job(function=functions.note_times, args=(str(runs.folder), 2.0), pool="ssh", retry=AT_ONCE)
    future = executor.submit(job)
    wait_for(runs.agents)
    time.sleep(0.1)
    guardian = guardian_of(runs.agents()[0])
    os.kill(guardian, signal.SIGSTOP)
    os.kill(runs.agents()[0], signal.SIGKILL)
    time.sleep(0.3)
    assert not job.attempts, "its loss was reported while what it had started was alive"
    os.kill(guardian, signal.SIGCONT)
    wait_for(lambda: job.attempts)
    future.result(timeout=PATIENCE)
    assert [attempt.error_code for attempt in job.attempts] == ["NODE_LOST", None]
    assert job.state.crashes == 0
    (_, ended), (begun, _) = runs.spans()
    assert ended < begun
    assert runs.last_sign_of_child(0) < time.time() - (time.monotonic() - begun)


def test_the_loss_of_a_node_s_guardian_is_no_crash_of_its_jobs(make_ssh_executor: MakeSshExecutor, runs: Runs) -> None:
    """The job of a guardian that is killed is NODE_LOST, and is retried on the same node."""
    executor = make_ssh_executor(1)
    job = Job(function=functions.note_times, args=(str(runs.folder), 1.0), pool="ssh", retry=AT_ONCE)
    future = executor.submit(job)
    wait_for(runs.agents)
    os.kill(guardian_of(runs.agents()[0]), signal.SIGKILL)
    future.result(timeout=PATIENCE)
    assert [attempt.error_code for attempt in job.attempts] == ["NODE_LOST", None]
    assert job.state.crashes == 0
    (_, ended), (begun, _) = runs.spans()
    assert ended < begun


def test_the_trees_of_a_stopped_agent_are_killed_before_their_retry(
    make_ssh_executor: MakeSshExecutor, runs: Runs, tmp_path: Path
) -> None:
    """An agent that is stopped is given up after its guardian has killed what it ran."""
    executor = make_ssh_executor(lost_after=1.0)
    run_on_both_hosts(executor, tmp_path)
    job = Job(function=functions.note_times, args=(str(runs.folder), 3.0), pool="ssh", retry=AT_ONCE)
    future = executor.submit(job)
    wait_for(runs.agents)
    agent = runs.agents()[0]
    os.kill(agent, signal.SIGSTOP)
    try:
        wait_for(lambda: job.attempts)
        known_at = time.monotonic()
        wait_for(lambda: len(runs.spans()) == 2)
        (_, ended), (begun, _) = runs.spans()
        assert ended < begun
        assert runs.last_sign_of_child(0) < time.time() - (time.monotonic() - begun)
        assert ended < known_at
    finally:
        os.kill(agent, signal.SIGCONT)
    future.result(timeout=PATIENCE)
    assert [attempt.error_code for attempt in job.attempts] == ["NODE_LOST", None]


def test_a_host_that_cannot_be_reached_leaves_its_jobs_to_others(
    two_ssh_hosts: SshServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs run on the hosts that answer, and the log says in words what is wrong with the other."""
    hosts = (
        SshHostSettings(host="node1", slots=2, python="/nowhere/python"),
        SshHostSettings(host="node2", python=two_ssh_hosts.python),
    )
    ssh = SshSettings(hosts=hosts, command=tuple(two_ssh_hosts.command))
    with JobExecutor(2, config=Settings(cluster=ClusterSettings(ssh=ssh))) as executor:
        futures = [executor.submit(Job(function="os:getpid", pool="ssh")) for _ in range(4)]
        for future in futures:
            future.result(timeout=PATIENCE)
        assert {future.job.attempts[0].node for future in futures} == {"node2"}
    assert "node1: '/nowhere/python' cannot be run there: set the host's python" in caplog.text


GREETING = """echo 'Welcome to node1.'; printf 'no line end'"""


def test_what_the_shell_of_a_host_prints_does_no_harm(
    two_ssh_hosts: SshServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A host whose shell greets on stdout runs jobs and answers `doctor`; where nothing else comes, that is said."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n{GREETING}\nexec {two_ssh_hosts.python} "$@"\n')
    python.chmod(0o755)
    host = SshHostSettings(host="node1", python=str(python))
    ssh = SshSettings(hosts=(host,), command=tuple(two_ssh_hosts.command))
    cluster = ClusterSettings(ssh=ssh)
    with caplog.at_level(logging.INFO), JobExecutor(1, config=Settings(cluster=cluster)) as executor:
        assert executor.run(Job(function=functions.size_of, args=(bytes(100_000),), pool="ssh")) == 100_000
    assert "node1: Welcome to node1." in caplog.messages
    (found,) = check_cluster(cluster)
    assert found.level is Level.FINE
    python.write_text(f"#!/bin/sh\n{GREETING}\n")
    with JobExecutor(1, config=Settings(cluster=ClusterSettings(ssh=ssh, node_timeout=1.0))) as executor:

        def reason() -> str:
            job = Job(function="os:getpid", pool="ssh", retry_attempts=0)
            with pytest.raises(WorkerUnavailableError) as refused:
                executor.submit(job).result(timeout=PATIENCE)
            return str(refused.value)

        said = re.compile(r"ended with code 0 .*: Welcome to node1\.; no line end")
        wait_for(lambda: said.search(reason()), what=reason)  # A busy host has not answered yet to the first.


def test_what_ssh_has_started_keeps_no_executor(two_ssh_hosts: SshServer, tmp_path: Path) -> None:
    """A process that outlives ssh and holds its stderr, as some of ControlPersist do, is not waited for."""
    ssh, pid = tmp_path / "ssh", tmp_path / "pid"
    command = shlex.join(two_ssh_hosts.command)
    ssh.write_text(f'#!/bin/sh\nsleep 600 <&- >&- &\necho $! >{pid}\nexec {command} "$@"\n')
    ssh.chmod(0o755)
    host = SshHostSettings(host="node1", python=two_ssh_hosts.python, directory=str(ROOT))
    cluster = ClusterSettings(ssh=SshSettings(hosts=(host,), command=(str(ssh),)))
    executor = JobExecutor(1, config=Settings(cluster=cluster))
    ending = threading.Thread(target=executor.shutdown, daemon=True)
    try:
        executor.run(Job(function="os:getpid", pool="ssh"))
        ending.start()
        ending.join(PATIENCE)
        assert not ending.is_alive()
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_without_any_host_jobs_fail_in_words(two_ssh_hosts: SshServer) -> None:
    """Jobs that no host can run fail as WORKER_UNAVAILABLE after node_timeout, and the error says what ssh said."""
    ssh = SshSettings(hosts=(SshHostSettings(host="nowhere.invalid"),), command=tuple(two_ssh_hosts.command))
    with JobExecutor(1, config=Settings(cluster=ClusterSettings(ssh=ssh, node_timeout=1.0))) as executor:
        job = Job(function="os:getpid", pool="ssh", retry_attempts=0)
        with pytest.raises(WorkerUnavailableError, match=r"no node of pool='ssh'.*nowhere.invalid: ssh cannot connect"):
            executor.submit(job).result(timeout=PATIENCE)
    assert job.state.crashes == 0


def test_a_host_that_does_not_answer_is_named(
    two_ssh_hosts: SshServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a host accepts the login and then hangs, that is said while its jobs wait, and in their error."""
    monkeypatch.setattr("executor_adapter.pools.cluster.grants.LACK_SECONDS", 0.1)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec cat > /dev/null\n")
    python.chmod(0o755)
    ssh = SshSettings(hosts=(SshHostSettings(host="node2", python=str(python)),), command=tuple(two_ssh_hosts.command))
    with JobExecutor(1, config=Settings(cluster=ClusterSettings(ssh=ssh, node_timeout=1.0))) as executor:
        job = Job(function="os:getpid", pool="ssh", retry_attempts=0)
        with pytest.raises(WorkerUnavailableError, match="no agent has started yet on node2"):
            executor.submit(job).result(timeout=PATIENCE)
    assert "no job of pool='ssh' can start yet: no agent has started yet on node2" in caplog.messages


def test_jobs_without_configured_hosts_are_refused() -> None:
    """A job with pool="ssh" is refused at submit where no host is configured."""
    with JobExecutor(1, config=Settings()) as executor:
        with pytest.raises(InvalidJobError, match=r"pool='ssh' needs hosts: set cluster\.ssh\.hosts"):
            executor.submit(Job(function="os:getpid", pool="ssh"))


def test_hosts_refuse_resources(make_ssh_executor: MakeSshExecutor) -> None:
    """Where nobody counts what the hosts have, a job with resources is refused at submit, with the way out."""
    with pytest.raises(InvalidJobError, match=r"resources=\{'CPU': 1.*nobody counts what the hosts of pool='ssh' have"):
        make_ssh_executor().submit(Job(function="os:getpid", pool="ssh", resources={"CPU": 1}))


def test_doctor_says_what_differs_on_hosts(two_ssh_hosts: SshServer) -> None:
    """The checks of `doctor` find hosts fine that are like this machine, and say what is wrong with others."""
    hosts = (
        SshHostSettings(host="node1", python=two_ssh_hosts.python),
        SshHostSettings(host="node2", python="/nowhere/python"),
    )
    ssh = SshSettings(hosts=hosts, command=tuple(two_ssh_hosts.command))
    same, missing = check_cluster(ClusterSettings(ssh=ssh))
    assert (same.level, missing.level) == (Level.FINE, Level.WRONG)
    assert "/nowhere/python" in missing.found
    left = r".*B of memory and .*B of disk free"
    assert re.match(rf"Python 3\.\d+, .*; {left}; clock [+-]\d\.\d s$", same.found), same.found
    now = time.time()
    described = {**describe(), "time": now + 60, "asked_at": now, "python": "3.9"}
    described["packages"] = {**described["packages"], "cloudpickle": None}
    assert compare_node("far", described)[1] == [
        f"node far has Python 3.9, and this program {describe()['python']}: use the same on both",
        f"cloudpickle is missing there, {describe()['packages']['cloudpickle']} here",
        "its clock is 60 s ahead",
    ]
    slow = {**describe(), "asked_at": now - 30}
    assert [compare_node("far", {**slow, "time": now - late})[1][:1] for late in (0, 29, 90)] == [
        [],
        [],
        ["its clock is 60 s behind"],
    ], "a node that took long to answer has read its clock at some time meanwhile"


@pytest.mark.parametrize("printed", ["", r"\377welcome\n", r"[1]\n"])
def test_doctor_finds_a_host_wrong_that_answers_something_else(printed: str) -> None:
    """A host that prints no description, or what is no text, is found wrong."""
    settings = SshSettings(hosts=(SshHostSettings(host="far"),), command=("printf", printed))
    (found,) = check_cluster(ClusterSettings(ssh=settings))
    assert (found.level, found.found) == (Level.WRONG, "it does not answer as an agent of this version does")


def test_a_host_that_fails_a_thousand_times_is_tried_again() -> None:
    """However often a host could not be reached, it is tried again within a minute."""
    supervisor = Mock(now=Mock(side_effect=itertools.count(step=1_000)))
    pool = Mock(supervisor=supervisor)
    pool.shapes.asked = {1: ()}
    hosts = SshHosts(pool, SshSettings(hosts=(SshHostSettings(host="far"),), command=("/none",)))
    for _ in range(1_100):
        hosts.ask([1])
        supervisor.call_soon.call_args.args[0]()
    assert supervisor.call_at.call_count == 1_100
    assert supervisor.call_at.call_args.args[0] % 1_000 == 60


# --- code ---


MODULES = {
    "only_here": "import helper_of_program as helper\ndef double(value):\n    return helper.times(value, 2)\n",
    "helper_of_program": "import only_here\ndef times(value, step):\n    return value * step\n",
}


def test_a_traceback_shows_the_lines_of_a_module_that_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shown in whatever encoding the module is written, though its file is not on the node."""
    text = "# coding: latin-1\ndef fail():\n    raise ValueError('f\xfcnf')\n"
    source = Source("sent_in_latin_1", "/nowhere/sent_in_latin_1.py", text.encode("latin-1"), False)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    fail = load([source.name], [source], REFERENCE + b"sent_in_latin_1:fail")
    monkeypatch.delitem(sys.modules, source.name)
    with pytest.raises(ValueError, match="f\xfcnf") as raised:
        fail()
    assert "    raise ValueError('f\xfcnf')" in "".join(traceback.format_exception(raised.value))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module of the program that no node has, which imports another one."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield importlib.import_module("only_here")
    for name in MODULES:
        del sys.modules[name]


@pytest.fixture
def old_helper(tmp_path: Path, two_ssh_hosts: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that have an older version of the helper."""
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / "helper_of_program.py").write_text("STEP = 0\ndef times(value, step):\n    return 'old'\n")
    python = f"env PYTHONPATH={ROOT}:{folder} {sys.executable}"
    monkeypatch.setattr(SshServer, "python", property(lambda server: python))


def test_modules_that_a_node_lacks_are_sent(make_ssh_executor: MakeSshExecutor, program: ModuleType) -> None:
    """A function whose module is not on the node runs there, with the modules that it imports."""
    executor = make_ssh_executor(1)
    assert executor.submit(Job(function=program.double, args=(21,), pool="ssh")).result(timeout=PATIENCE) == 42


@pytest.mark.parametrize("way", [pytest.param("by reference", marks=pytest.mark.nightly), "by value"])
@pytest.mark.usefixtures("old_helper")
def test_a_node_runs_no_other_version_of_a_module(
    make_ssh_executor: MakeSshExecutor, program: ModuleType, way: str
) -> None:
    """Where a node has an older helper of the function, it runs the program's, also for a function without a module."""
    function = {"by reference": program.double, "by value": lambda value: program.double(value)}[way]
    executor = make_ssh_executor(1)
    assert executor.submit(Job(function=function, args=(21,), pool="ssh")).result(timeout=PATIENCE) == 42


@pytest.mark.parametrize(
    ("has_files", "way"),
    [
        (False, "by reference"),
        (True, "by value"),
        pytest.param(False, "by value", marks=pytest.mark.nightly),
        pytest.param(True, "by reference", marks=pytest.mark.nightly),
    ],
)
def test_a_reloaded_module_replaces_the_earlier_one(
    make_ssh_executor: MakeSshExecutor,
    program: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    has_files: bool,
) -> None:
    """A worker that has run a function runs it with the program's new helper, whether its node has the files or not."""
    if has_files:
        python = f"env PYTHONPATH={ROOT}:{tmp_path} {sys.executable}"
        monkeypatch.setattr(SshServer, "python", property(lambda server: python))
    function = {"by reference": program.double, "by value": lambda value: program.double(value)}[way]
    executor = make_ssh_executor(1)
    jobs = [Job(function=function, args=(21,), pool="ssh") for _ in range(3)]
    assert executor.submit(jobs[0]).result(timeout=PATIENCE) == 42
    (tmp_path / "helper_of_program.py").write_text("def times(value, step):\n    return value * step + 1\n")
    if not has_files:  # A worker that starts now imports what is on its node.
        assert executor.submit(jobs[1]).result(timeout=PATIENCE) == 42, "the program has not reloaded it"
    importlib.reload(sys.modules["helper_of_program"])
    assert executor.submit(jobs[2]).result(timeout=PATIENCE) == program.double(21) == 43


@pytest.mark.parametrize(
    "text",
    [
        "from helper_of_program import STEP\ndef double(value):\n    return value * STEP\n",
        "def double(value):\n    from helper_of_program import STEP\n    return value * STEP\n",
    ],
    ids=["at the top", "in the function"],
)
@pytest.mark.usefixtures("old_helper")
def test_a_constant_of_another_version_is_the_program_s(
    make_ssh_executor: MakeSshExecutor, program: ModuleType, tmp_path: Path, text: str
) -> None:
    """What a function imports by name alone, such as a number, is that of the program, and not of the node."""
    for name, content in {"helper_of_program": "STEP = 2\n", "only_here": text}.items():
        (tmp_path / f"{name}.py").write_text(content)
        vars(sys.modules[name]).pop("helper", None)
        importlib.reload(sys.modules[name])
    executor = make_ssh_executor(1)
    assert executor.submit(Job(function=program.double, args=(21,), pool="ssh")).result(timeout=PATIENCE) == 42


def test_a_module_that_cannot_be_sent_is_named(
    make_ssh_executor: MakeSshExecutor, program: ModuleType, tmp_path: Path
) -> None:
    """A function that reaches a module which a node lacks, and of which there is no source, fails with its name."""
    (tmp_path / "helper_of_program.py").unlink()
    executor = make_ssh_executor(1)
    job = Job(function=program.double, args=(21,), pool="ssh")
    with pytest.raises(JobSerializationError, match="the module helper_of_program is not on this node: copy it there"):
        executor.submit(job).result(timeout=PATIENCE)


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an installed module that nodes lack; a function of the program needs it."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "library_of_program.py").write_text("def times(value, step):\n    return value * step\n")
    (tmp_path / "needs_library.py").write_text(
        "import library_of_program\ndef double(value):\n    return library_of_program.times(value, 2)\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in ("library_of_program", "needs_library"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("has_second", [False, True])
def test_a_function_is_not_tried_again_where_a_module_is_missing(
    two_ssh_hosts: SshServer, library: Path, tmp_path: Path, has_second: bool
) -> None:
    """A job whose node lacks a package is given to another one; without another it fails with the name and no retry."""
    python = f"env PYTHONPATH={ROOT}:{library} {sys.executable}"
    hosts = [SshHostSettings(host="node1", python=two_ssh_hosts.python, directory=str(ROOT))]
    hosts += [SshHostSettings(host="node2", python=python, directory=str(ROOT))] if has_second else []
    ssh = SshSettings(hosts=tuple(hosts), command=tuple(two_ssh_hosts.command))
    with JobExecutor(len(hosts), config=Settings(cluster=ClusterSettings(ssh=ssh))) as executor:
        if has_second:
            run_on_both_hosts(executor, tmp_path)
        jobs = [Job(function="needs_library:double", args=(21,), pool="ssh", retry=AT_ONCE) for _ in range(4)]
        futures = [executor.submit(job) for job in jobs]
        if has_second:
            assert [future.result(timeout=PATIENCE) for future in futures] == [42] * 4
        else:
            for future in futures:
                with pytest.raises(JobSerializationError, match="No module named 'library_of_program'"):
                    future.result(timeout=PATIENCE)
    codes = [[(attempt.node, attempt.error_code) for attempt in job.attempts] for job in jobs]
    assert codes == [[("node2", None)] if has_second else [("node1", "MISSING_MODULE")]] * 4
