"""Tests jobs on a real Dask cluster: leases, lost workers, and what a program needs that does not use it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor, JobFuture, RetryPolicy
from executor_adapter.cli.checks import check_cluster
from executor_adapter.config import ClusterSettings, DaskSettings, Settings
from executor_adapter.exceptions import ConfigurationError, InvalidJobError, JobTimeoutError, WorkerUnavailableError
from executor_adapter.monitoring import Level
from executor_adapter.pools.cluster.engines import dask, dask_worker
from executor_adapter.pools.cluster.pool import RemotePool
from executor_adapter.pools.cluster.remote_agent import RemoteAgent
from tests.contract.cluster import functions
from tests.contract.cluster.conftest import Runs, guardian_of
from tests.contract.cluster.dask_cluster import DaskCluster, dask_cluster
from tests.contract.cluster.hosts import full_port
from tests.contract.functions import wait_for_file
from tests.insides import supervisor_of
from tests.waiting import PATIENCE, wait_for

AT_ONCE = RetryPolicy(retry_delay=0.0, jitter=0.0)


def executor_of(cluster: DaskCluster, max_workers: int, **settings: Any) -> JobExecutor:
    dask = DaskSettings(**json.loads(cluster.settings()))
    return JobExecutor(max_workers, config=Settings(cluster=ClusterSettings(dask=dask, **settings)))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster of two workers with one thread each; tests may kill workers and start others."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), workers=2, threads=1) as made:
        yield made


def agents_of(executor: JobExecutor) -> list[RemoteAgent]:
    pool = supervisor_of(executor).pools.made["dask"]
    assert isinstance(pool, RemotePool)
    return pool.agents


def test_leases_are_asked_for_and_given_back(cluster: DaskCluster, tmp_path: Path) -> None:
    """Jobs run on both workers within their limits; leases that are idle go back, and later jobs get new ones."""
    with executor_of(cluster, 2, lease_idle=0.5) as executor:
        both = run_on_both_workers(executor, tmp_path)
        assert len({future.job.attempts[0].node for future in both}) == 2
        late = Job(function=time.sleep, args=(30,), pool="dask", max_runtime=0.3, retry_attempts=0)
        with pytest.raises(JobTimeoutError):
            executor.submit(late).result(timeout=PATIENCE)
        many = executor.map(functions.size_of, [bytes(size) for size in range(300)], pool="dask")
        assert [result.value for result in many] == list(range(300))
        wait_for(lambda: not agents_of(executor))
        assert executor.run(Job(function=functions.size_of, args=(b"again",), pool="dask")) == 5


def test_the_jobs_of_a_killed_worker_run_again_and_once_each(cluster: DaskCluster, runs: Runs, tmp_path: Path) -> None:
    """A killed Dask worker's running job is NODE_LOST and retried once nothing of it is alive; the others complete."""
    with executor_of(cluster, 2, lost_after=3600.0) as executor:  # Silence is not what tells it.
        run_on_both_workers(executor, tmp_path)
        fields = {"args": (str(runs.folder), 1.5), "pool": "dask", "retry": AT_ONCE}
        jobs = [Job(function=functions.note_times, **fields) for _ in range(3)]
        futures = [executor.submit(job) for job in jobs]
        wait_for(lambda: len(runs.agents()) == 2)
        lost = executor.running()[0]
        node = lost.live.assignment.node
        victim = next(each for each in cluster.workers if _listens_at(each, node))
        victim.kill()
        victim.wait()
        wait_for(lambda: lost.attempts)
        for future in futures:
            future.result(timeout=PATIENCE)
    codes = {job.job_id: [attempt.error_code for attempt in job.attempts] for job in jobs}
    assert codes.pop(lost.job_id) == ["NODE_LOST", None]
    assert list(codes.values()) == [[None], [None]]
    cluster.start_worker(1)
    cluster.wait_for_workers(2)  # The next test changes the Python of both.


@pytest.fixture
def unreachable() -> Iterator[str]:
    """An address to which workers cannot connect."""
    with full_port("127.0.0.1") as address:
        yield address


def test_a_link_goes_through_the_cluster_where_a_worker_does_not_reach_the_program(
    cluster: DaskCluster, unreachable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers that cannot connect to the program run its jobs, large values too, and it is said which they are."""
    with executor_of(cluster, 2, advertise=unreachable) as executor:
        both = run_on_both_workers(executor, tmp_path)
        sizes = [executor.submit(Job(function=functions.size_of, args=(bytes(9_000_000),), pool="dask")) for _ in both]
        assert [size.result(timeout=PATIENCE) for size in sizes] == [9_000_000] * 2
    for future in both:
        node = future.job.attempts[0].node
        assert f"worker {node} does not reach this program: its link goes through the Dask cluster" in caplog.messages


def test_a_worker_keeps_nothing_of_a_program_that_has_died(cluster: DaskCluster, unreachable: str) -> None:
    """Where a program that a worker did not reach is killed, the stream of its agent is closed."""
    variables = {"DASK": cluster.settings(), "ADVERTISE": unreachable, "LOST_AFTER": "1"}
    program = (
        "from executor_adapter import Job, JobExecutor\n"
        "with JobExecutor(1) as executor: executor.run(Job(function='time:sleep', args=(3600,), pool='dask'))\n"
    )
    with distributed.Client(cluster.address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        before = dask_worker.UNREAD_SECONDS
        client.run(set_unread_seconds, 0.0)
        env = os.environ | {f"EXECUTOR_ADAPTER_CLUSTER__{name}": value for name, value in variables.items()}
        with subprocess.Popen([sys.executable, "-c", program], env=env) as head:
            wait_for(lambda: sum(client.run(count_relayed).values()) == 1)
            head.kill()
        wait_for(lambda: sum(client.run(count_relayed).values()) == 0)
        client.run(set_unread_seconds, before)


def set_unread_seconds(seconds: float) -> None:
    """Let this worker wait so long for a head that might read what an agent has left."""
    dask_worker.UNREAD_SECONDS = seconds


def count_relayed() -> int:
    """Return how many streams of agents this worker holds for their heads."""
    return len(dask_worker.relayed)


def test_a_worker_waits_neither_for_a_program_that_it_does_not_reach_nor_for_its_agent(
    cluster: DaskCluster, unreachable: str, tmp_path: Path
) -> None:
    """An agent finds its way by itself: where it never does, its worker listens for nobody, then as before."""
    living = [worker.pid for worker in cluster.workers if worker.poll() is None]
    before = list(map(listening_sockets, living))
    with (
        python_of_workers(cluster, tmp_path, f"open({str(tmp_path)!r} + '/started', 'w')\ntime.sleep(3600)\n"),
        executor_of(cluster, 1, advertise=unreachable) as executor,
    ):
        waiting = executor.submit(Job(function="os:getpid", pool="dask", retry_attempts=0))
        wait_for((tmp_path / "started").exists)
        assert list(map(listening_sockets, living)) == before
        waiting.cancel()


def listening_sockets(pid: int) -> int:
    """Return the number of sockets at which a process listens by TCP."""
    links = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # It has been closed meanwhile.
            links.add(str(fd.readlink()))
    fields = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(each[3] == "0A" and f"socket:[{each[9]}]" in links for each in fields)


@pytest.mark.nightly
@pytest.mark.parametrize("is_relayed", [False, True])
def test_a_killed_agent_s_job_is_retried_once_nothing_of_it_is_alive(
    cluster: DaskCluster, runs: Runs, tmp_path: Path, unreachable: str, is_relayed: bool
) -> None:
    """The loss of an agent that is killed is known only when its guardian has killed all that it had started."""
    with executor_of(cluster, 2, lost_after=3600.0, advertise=unreachable if is_relayed else None) as executor:
        run_on_both_workers(executor, tmp_path)
        job = Job(function=functions.note_times, args=(str(runs.folder), 2.0), pool="dask", retry=AT_ONCE)
        future = executor.submit(job)
        wait_for(runs.agents)
        guardian = guardian_of(runs.agents()[0])
        os.kill(guardian, signal.SIGSTOP)
        os.kill(runs.agents()[0], signal.SIGKILL)
        time.sleep(0.3)
        assert not job.attempts
        os.kill(guardian, signal.SIGCONT)
        future.result(timeout=PATIENCE)
    assert [attempt.error_code for attempt in job.attempts] == ["NODE_LOST", None]
    (_, _, ended), (_, begun, _) = runs.lives()
    assert ended < begun


BROKEN_AGENTS = {
    "ends by itself": ("os._exit(0)", "the agent ended with code 0, and does not say why"),
    "has another version": (
        "from executor_adapter.pools.cluster import frames; frames.PROTOCOL = 0",
        "node .* has another version of prefect-executor-adapter: install the same one on both",
    ),
}


@pytest.mark.parametrize("what", ["has another version", pytest.param("ends by itself", marks=pytest.mark.nightly)])
def test_an_agent_that_cannot_be_used_is_warned_of_once_and_tried_each_second(
    cluster: DaskCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """A worker's Python may be a program that does not do what it should; the job waits until it is mended."""
    fault, why = BROKEN_AGENTS[what]
    starts = tmp_path / "starts"
    broken = (
        f"print(time.monotonic(), file=open({str(starts)!r}, 'a'))\n"
        f"program = program.replace('sys.exit(main', {fault + chr(10)!r} + 'sys.exit(main')\n"
    )
    with executor_of(cluster, 1) as executor:
        with python_of_workers(cluster, tmp_path, broken):
            future = executor.submit(Job(function="os:getpid", pool="dask", retry_attempts=0))
            wait_for(lambda: starts.exists() and len(starts.read_text().splitlines()) >= 3)
        future.result(timeout=PATIENCE)
    times = [float(line) for line in starts.read_text().splitlines()]
    assert all(later - earlier >= 0.9 for earlier, later in itertools.pairwise(times))
    warnings = [record.message for record in caplog.records if record.name == "executor_adapter.cluster"]
    assert len(warnings) == len(set(warnings)) > 0
    assert all(re.fullmatch(f"the Dask cluster runs no jobs now: {why}", warning) for warning in warnings)


REFUSED_AGENTS = {
    "another Python": (
        "from executor_adapter.pools.cluster import frames; frames._PYTHON = '3.9'",
        "has Python 3.9, and this program 3",
    ),
    "another token": ("setup['token'] = '00' * 32", "it does not know this agent's token"),
    "no way back": (
        "setup.update(address=['127.0.0.1', 1], relay=9999)",
        "cannot reach its head at 127.0.0.1, port 1 .*refused.*, nor through its cluster: .*Bad file descriptor",
    ),
}


@pytest.mark.nightly
@pytest.mark.parametrize("what", REFUSED_AGENTS)
def test_why_no_agent_can_be_used_is_in_the_errors_of_the_jobs(cluster: DaskCluster, tmp_path: Path, what: str) -> None:
    """Where nodes start agents that cannot serve the program, its jobs fail with the reason, with resources or not."""
    fault, why = REFUSED_AGENTS[what]
    broken = f"program = program.replace('sys.exit(main', {fault + chr(10)!r} + 'sys.exit(main')\n"
    with python_of_workers(cluster, tmp_path, broken), executor_of(cluster, 2, node_timeout=15.0) as executor:
        fields = {"function": "os:getpid", "pool": "dask", "retry_attempts": 0}
        futures = [executor.submit(Job(**fields)), executor.submit(Job(**fields, resources={"CPU": 1}))]
        for future in futures:
            with pytest.raises(WorkerUnavailableError, match=why):
                future.result(timeout=PATIENCE)


@pytest.mark.nightly
def test_why_an_agent_that_was_not_set_up_has_ended_is_said(
    cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a program does nothing about an agent that has connected, the log and the errors of jobs say so."""
    monkeypatch.setattr("executor_adapter.pools.cluster.remote_agent.RemoteAgent._on_frames", lambda *_: None)
    patience = "from executor_adapter.pools.cluster import agent; agent.SETUP_TIMEOUT = 1.0\n"
    impatient = f"program = program.replace('sys.exit(main', {patience!r} + 'sys.exit(main')\n"
    why = "its head did not set it up within 1 s"
    with python_of_workers(cluster, tmp_path, impatient), executor_of(cluster, 1, node_timeout=10.0) as executor:
        future = executor.submit(Job(function="os:getpid", pool="dask", retry_attempts=0))
        with pytest.raises(WorkerUnavailableError, match=why):
            future.result(timeout=PATIENCE)
    assert f"the Dask cluster runs no jobs now: {why}" in caplog.messages


def test_an_agent_that_does_not_come_is_said_and_not_others_that_use_all(
    cluster: DaskCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a node holds a slot for the program and its agent says nothing, the log says so; it is killed then."""
    monkeypatch.setattr("executor_adapter.pools.cluster.grants.LACK_SECONDS", 0.5)
    with python_of_workers(cluster, tmp_path, "time.sleep(3600)\n"), executor_of(cluster, 1) as executor:
        waiting = executor.submit(Job(function="os:getpid", pool="dask", retry_attempts=0))
        wait_for(lambda: "no agent on tcp://127.0.0.1:" in caplog.text)
        waiting.cancel()
    assert "others use all" not in caplog.text
    wait_for(lambda: not any(str(tmp_path / "python") in line for line in command_lines()))


@pytest.mark.nightly
def test_shapes_that_let_one_another_pass_let_agents_start(cluster: DaskCluster, tmp_path: Path) -> None:
    """Jobs of two shapes start though an agent takes longer to do so than leases of one shape wait for the other's."""
    with python_of_workers(cluster, tmp_path, "time.sleep(3)\n"), executor_of(cluster, 2) as executor:
        shapes = [{"CPU": 1.0}, {"CPU": 0.5}]
        jobs = [Job(function="os:getpid", pool="dask", resources=each, retry_attempts=0) for each in shapes]
        for future in [executor.submit(job) for job in jobs]:
            future.result(timeout=PATIENCE)


def command_lines() -> Iterator[str]:
    """Yield the command line of each process."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield file.read_text().replace("\0", " ")


@pytest.mark.nightly
def test_what_a_worker_s_python_prints_does_no_harm(tmp_path: Path) -> None:
    """An agent whose Python prints something first gives an idle lease back, and goes on with the job of another."""
    noise = "print('loading modules', [1], flush=True); print('{\"a\": 1}', flush=True)\n"
    go = tmp_path / "go"
    with (
        dask_cluster(tmp_path, workers=1, threads=2) as cluster,
        python_of_workers(cluster, tmp_path, noise),
        executor_of(cluster, 2, lease_idle=0.5) as executor,
        distributed.Client(cluster.address, set_as_default=False) as client,  # type: ignore[no-untyped-call]
    ):
        long = Job(function=wait_for_file, args=(str(go),), pool="dask", retry_attempts=0)
        running, other = (executor.submit(each) for each in (long, Job(function="os:getpid", pool="dask")))
        other.result(timeout=PATIENCE)
        wait_for(lambda: running.running() and set(client.run(count_executing).values()) == {1})
        go.touch()
        running.result(timeout=PATIENCE)


def count_executing(dask_worker: distributed.Worker) -> int:
    """Return how many leases a worker holds."""
    return len(dask_worker.state.executing) + len(dask_worker.state.long_running)


@contextlib.contextmanager
def python_of_workers(cluster: DaskCluster, folder: Path, change: str) -> Iterator[None]:
    """Let the workers have another Python meanwhile: it does what `change` says, and then runs `program`."""
    wrapper = folder / "python"
    wrapper.write_text(
        f"#!{sys.executable}\n"
        "import os, sys, time\n"
        "*flags, program = sys.argv[1:]\n"
        f"{change}"
        "os.execv(sys.executable, [sys.executable, *flags, program])\n"
    )
    wrapper.chmod(0o755)
    with distributed.Client(cluster.address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        client.run(set_python, str(wrapper))
        try:
            yield
        finally:
            client.run(set_python, sys.executable)


def set_python(path: str) -> None:
    """Let this process start another Python."""
    sys.executable = path


def run_on_both_workers(executor: JobExecutor, folder: Path) -> list[JobFuture]:
    """Run two jobs at once, so that both workers have an agent; return their futures."""
    go = folder / "go"
    both = [executor.submit(Job(function=wait_for_file, args=(str(go),), pool="dask")) for _ in range(2)]
    wait_for(lambda: all(future.running() for future in both))
    go.touch()
    for future in both:
        future.result(timeout=PATIENCE)
    return both


def _listens_at(worker: subprocess.Popen[bytes], node: str) -> bool:
    """Return whether a worker's process is the one whose address is the name of the node."""
    port = f":{int(node.rpartition(':')[2]):04X}"
    for line in Path(f"/proc/{worker.pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(port) and fields[3] == "0A":
            link = f"socket:[{fields[9]}]"
            return any(fd.readlink() == Path(link) for fd in Path(f"/proc/{worker.pid}/fd").iterdir())
    return False


def test_an_executor_can_name_the_cluster(cluster: DaskCluster) -> None:
    """`JobExecutor(address=...)` runs its Dask jobs on that cluster; what is no address is refused."""
    with JobExecutor(1, config=Settings(), address=cluster.address) as executor:
        job = Job(function="os:getpid", pool="dask")
        executor.submit(job).result(timeout=PATIENCE)
    assert str(job.attempts[0].node).startswith("tcp://127.0.0.1:")
    with pytest.raises(
        ConfigurationError, match="address: 'scheduler' is not allowed: must be host:port of a Ray cluster"
    ):
        JobExecutor(1, config=Settings(), address="scheduler")


def test_workers_connect_to_what_the_program_advertises(cluster: DaskCluster) -> None:
    """A program listens at the port of its settings, and workers connect to the name that it gives them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cluster_settings = ClusterSettings(
        dask=DaskSettings(address=cluster.address), listen_port=port, advertise=f"localhost:{port}"
    )
    with JobExecutor(1, config=Settings(cluster=cluster_settings)) as executor:
        agent = executor.submit(Job(function=functions.parent_of_agent, pool="dask")).result(timeout=PATIENCE)
        assert f":{port:04X} " in Path(f"/proc/{agent}/net/tcp").read_text()


def test_doctor_asks_the_workers(cluster: DaskCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of `doctor` find workers fine that are like this machine, and say which do not reach it."""
    settings = DaskSettings(address=cluster.address)
    for found in check_cluster(ClusterSettings(dask=settings)):
        assert found.level is Level.FINE
        versions, left = r"Python 3\.\d+, .*cloudpickle \d.*, distributed \d.*", r".*B of memory and .*B of disk free"
        assert re.match(rf"{versions}, in process \d+ of .*; {left}; clock [+-]\d+\.\d s$", found.found), found.found
    with full_port("127.0.0.1") as unreachable:
        for found in check_cluster(ClusterSettings(dask=settings, advertise=unreachable)):
            assert found.level is Level.WARNING
            assert re.match("it cannot reach this machine at .*, so that the link goes through", found.found)
    monkeypatch.setattr("executor_adapter.pools.cluster.descriptions.ANSWER_TIMEOUT", 0.5)
    (closed,) = check_cluster(ClusterSettings(dask=DaskSettings(address="tcp://127.0.0.1:1")))
    assert closed.level is Level.WRONG


@pytest.mark.nightly
def test_what_is_waited_for_is_said(
    cluster: DaskCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that gets no node says whether there is none, or others use all."""
    monkeypatch.setattr("executor_adapter.pools.cluster.grants.LACK_SECONDS", 0.1)
    go = tmp_path / "go"
    blocked, empty = "2 could have it, and none gives it: others use all", "the cluster has no worker"
    with executor_of(cluster, 2) as other, dask_cluster(tmp_path, workers=0) as without_workers:
        held = [other.submit(Job(function=wait_for_file, args=(str(go),), pool="dask")) for _ in range(2)]
        wait_for(lambda: all(future.running() for future in held))
        for asked, why in ((cluster, blocked), (without_workers, empty)):
            with executor_of(asked, 1) as executor:
                waiting = executor.submit(Job(function="os:getpid", pool="dask"))
                wait_for(lambda why=why: f"no job of pool='dask' can start yet: {why}" in caplog.messages)
                waiting.cancel()
        go.touch()
        for future in held:
            future.result(timeout=PATIENCE)


def test_a_scheduler_that_does_not_say_who_waits_is_named(
    cluster: DaskCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, mocker: MockerFixture
) -> None:
    """Slots do not go back for others then, and a warning says once why, however often it is asked."""
    mocker.patch("executor_adapter.pools.cluster.grants.MAX_QUESTION_INTERVAL", 0.1)
    mocker.patch("executor_adapter.pools.cluster.engines.dask.platform.python_version", return_value="3.99.0")
    asked = mocker.spy(dask.DaskCluster, "others")
    go = tmp_path / "go"
    with executor_of(cluster, 2) as executor:
        jobs = [Job(function=wait_for_file, args=(str(go),), pool="dask") for _ in range(4)]
        futures = [executor.submit(job) for job in jobs]
        wait_for(lambda: asked.call_count >= 3)
        go.touch()
        for future in futures:
            future.result(timeout=PATIENCE)
    warnings = [each for each in caplog.messages if "does not say who waits" in each]
    assert len(warnings) == len(set(warnings)) > 0  # A busy scheduler may have several reasons.


def test_without_an_address_a_local_cluster_is_started(mocker: MockerFixture) -> None:
    """pool="dask" without an address runs on a cluster in this process, whose worker connects to no program.

    The leases of other programs would wait with it where one cannot be reached: agents connect, not workers.
    """
    connect = mocker.spy(socket, "create_connection")
    with JobExecutor(1, config=Settings()) as executor:
        job = Job(function="os:getpid", pool="dask")
        executor.submit(job).result(timeout=PATIENCE)
    assert job.attempts[0].pool == "dask"
    connect.assert_not_called()


def test_a_local_cluster_has_the_capacity_of_the_executor() -> None:
    """Jobs with resources run on a local cluster as far as the executor's capacity goes, and fail at once beyond it."""
    with JobExecutor(2, config=Settings(), capacity={"license": 1}) as executor:
        job = Job(function="os:getpid", pool="dask", resources={"license": 1})
        executor.submit(job).result(timeout=PATIENCE)
        more = Job(function="os:getpid", pool="dask", resources={"license": 2}, retry_attempts=0)
        with pytest.raises(WorkerUnavailableError, match="no worker has license 2: the most that one has is license 1"):
            executor.submit(more).result(timeout=PATIENCE)


def test_a_program_that_succeeds_ends_without_a_word_of_dask_s() -> None:
    """Neither an executor that is closed nor one that is left to the end of the program makes Dask warn."""
    program = (
        "from executor_adapter import JobExecutor\n"
        "if __name__ == '__main__':\n"
        "    with JobExecutor(2) as executor: assert len(list(executor.map(abs, range(9), pool='dask'))) == 9\n"
        "    executor = JobExecutor(2)\n"
        "    assert len(list(executor.map(abs, range(9), pool='dask'))) == 9\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    assert not re.search("Traceback|CancelledError|ERROR", done.stderr), done.stderr


def test_without_dask_a_job_is_refused_with_the_command_that_installs_it(mocker: MockerFixture) -> None:
    """Where the extra is missing, a job with pool="dask" is refused at submit."""
    mocker.patch("executor_adapter.executor.defaults.is_installed", return_value=False)
    with JobExecutor(1, config=Settings()) as executor:
        with pytest.raises(InvalidJobError, match=r"pip install 'prefect-executor-adapter\[dask\]'"):
            executor.submit(Job(function="os:getpid", pool="dask"))


def test_a_program_without_dask_jobs_imports_nothing_of_dask() -> None:
    """Neither the package nor an executor of another pool imports Dask."""
    code = (
        "import sys\n"
        "from executor_adapter import Job, JobExecutor\n"
        "with JobExecutor(1) as executor: executor.run(Job(function='os:getpid', pool='process'))\n"
        "assert not {'dask', 'distributed', 'ray'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


@pytest.mark.nightly
def test_closing_withdraws_the_leases_that_were_not_granted(
    cluster: DaskCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An executor that closes while it waits for more slots leaves no task in Dask, and logs no failure."""
    with executor_of(cluster, 4) as executor:
        run_on_both_workers(executor, tmp_path)
        go = tmp_path / "go"
        for future in [executor.submit(Job(function=wait_for_file, args=(str(go),), pool="dask")) for _ in range(4)]:
            future.result(timeout=PATIENCE)
    assert not [record.message for record in caplog.records if record.name == "executor_adapter.cluster"]
    with distributed.Client(cluster.address, set_as_default=False) as client:  # type: ignore[no-untyped-call]
        wait_for(lambda: not any(client.call_stack().values()))
        assert not any(client.processing().values())
