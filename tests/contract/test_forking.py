"""Tests forked processes: what they can do with their parent's executors, and that they do these no harm.

Each test runs a program of its own, since only there a child can exit as programs do, and be waited for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import asyncio, contextlib, logging, multiprocessing, os, signal, sys, threading, time
from pathlib import Path
from executor_adapter import Job, JobExecutor
from executor_adapter.exceptions import ExecutorClosedError
from executor_adapter.executor.executor import current_executor

def forked(child):
    "Run child() in a forked process, which then exits as any program does. Return its exit code."
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        child()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def refused(call):
    try:
        call()
    except ExecutorClosedError as error:
        return "this one was forked from: make another one here" in str(error)
    return False

def job(pool="thread", function=os.getpid, **fields):
    return Job(function=function, pool=pool, retry_attempts=0, **fields)
"""


def run(program: str, cwd: Path, *, method: str = "guardian") -> str:
    """Return what the program prints. It must exit by itself, without an error."""
    script = cwd / "program.py"
    script.write_text(PRELUDE + program)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "EXECUTOR_ADAPTER_EXECUTOR__START_METHOD": method}
    ended = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(script)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended.stdout


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_a_child_exits_without_waiting_for_its_parent_s_jobs(pool: str, tmp_path: Path) -> None:
    """A forked child exits at once, even if a job of its parent runs at the fork."""
    program = f"""
executor = JobExecutor(2)
executor.run(job({pool!r}))
running = executor.submit(job({pool!r}, time.sleep, args=(1,)))
assert forked(lambda: None) == 0
assert running.result() is None
print("well")
"""
    assert run(program, tmp_path) == "well\n"


def test_an_inherited_executor_refuses_what_it_cannot_do_here(tmp_path: Path) -> None:
    """An executor inherited by a fork refuses to submit, run, map or recover, and ends nothing of its parent."""
    program = """
executor = JobExecutor(2, store=f"sqlite:///{Path.cwd() / 'jobs.db'}")
executor.run(job())
over, live = executor.submit(job()), executor.submit(job(function=time.sleep, args=(2,)))
over.result()
while not live.running():
    time.sleep(0.001)

def child():
    assert refused(lambda: executor.submit(job()))
    assert refused(lambda: executor.run(job()))
    assert refused(lambda: list(executor.map(abs, [1])))
    assert refused(lambda: executor.drive(job()))
    assert refused(executor.recover)
    assert refused(executor.flush)
    assert refused(lambda: executor.release("none"))
    assert refused(executor.__enter__)
    assert refused(live.result)
    assert refused(live.exception)
    assert over.result() > 0
    assert not executor.cancel(live.job.job_id)
    assert not live.cancel()
    assert executor.stats().jobs_running == 1
    asyncio.run(executor.stop())
    executor.shutdown(timeout=0)
    executor.shutdown(wait=False)
    print("well")

assert forked(child) == 0
assert live.result() is None  # nothing of this ended it
"""
    assert run(program, tmp_path) == "well\n"


def test_leaving_an_inherited_with_block_returns_at_once_and_ends_nothing(tmp_path: Path) -> None:
    """Leaving an inherited `with` block in a child returns at once and ends no job of the parent."""
    program = """
with contextlib.suppress(KeyError):
    with JobExecutor(2) as executor:
        live = executor.submit(job(function=time.sleep, args=(2,)))
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            raise KeyError("out")
        assert os.waitpid(pid, 0)[1] == 0
        assert live.result() is None
        print("parent")
        sys.exit(0)
print("child", live.done())
"""
    assert run(program, tmp_path) == "child False\nparent\n"


@pytest.mark.parametrize("method", ["guardian", pytest.param("spawn", marks=pytest.mark.nightly)])
def test_a_child_has_an_executor_of_its_own_and_harms_no_other(method: str, tmp_path: Path) -> None:
    """A forked child runs jobs with an executor of its own, and its parent's workers go on working."""
    program = """
def worker(executor):
    return executor.run(job("process"))

with JobExecutor(1) as executor:
    before = worker(executor)
    default_before = []

    def child():
        own = current_executor()
        assert own is not executor
        assert own is current_executor()
        assert own.run(job("thread")) == os.getpid()
        assert worker(own) not in (before, os.getpid(), os.getppid())
        with JobExecutor(1) as nearer:
            assert current_executor() is nearer
            assert nearer.run(job()) == os.getpid()

    assert forked(child) == 0
    os.kill(before, 0)  # it is there
    assert worker(executor) > 0
    assert current_executor() is executor
print("well")
"""
    assert run(program, tmp_path, method=method) == "well\n"


def test_a_child_of_multiprocessing_has_its_own_default_executor(tmp_path: Path) -> None:
    """A child started by multiprocessing has a default executor of its own."""
    program = """
def child(parents):
    assert current_executor().run(job()) == os.getpid() != parents

if __name__ == "__main__":
    assert current_executor().run(job()) == os.getpid()
    process = multiprocessing.get_context("fork").Process(target=child, args=(os.getpid(),))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert current_executor().run(job()) == os.getpid()
    print("well")
"""
    assert run(program, tmp_path) == "well\n"


@pytest.mark.parametrize("forks", [3, pytest.param(12, marks=pytest.mark.nightly)])
def test_a_fork_while_other_threads_submit_leaves_no_lock_held(forks: int, tmp_path: Path) -> None:
    """A child forked while other threads submit jobs finds no lock held."""
    program = f"""
executor = JobExecutor(2, max_pending=50, store="memory:")
executor.run(job())  # all is imported: Python itself forks with the locks of imports held
stop = threading.Event()

def submit():
    while not stop.is_set():
        executor.submit(job(function=int))
        time.sleep(0.0005)  # a child's end takes the longer the more there is in memory

threads = [threading.Thread(target=submit, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()

def child():
    assert refused(lambda: executor.submit(job()))
    executor.shutdown()
    assert current_executor().run(job()) == os.getpid()

for _ in range({forks}):
    assert forked(child) == 0
stop.set()
for thread in threads:
    thread.join()
executor.shutdown()
print("well")
"""
    assert run(program, tmp_path) == "well\n"


def is_alive(pid: int) -> bool:
    """Return whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("method", ["guardian", "spawn"])
def test_a_child_keeps_no_worker_alive_when_its_parent_is_killed(method: str, tmp_path: Path) -> None:
    """A forked child does not keep its parent's workers alive when the parent is killed."""
    program = """
executor = JobExecutor(1)
worker = executor.run(job("process", os.getpid))
executor.submit(job("process", time.sleep, args=(60,)))
while not executor.running():
    time.sleep(0.01)
child = os.fork()
if child == 0:
    os.close(1), os.close(2)
    time.sleep(60)
    os._exit(0)
Path("pids").write_text(f"{worker} {child}")
os.kill(os.getpid(), signal.SIGKILL)
"""
    with pytest.raises(AssertionError):
        run(program, tmp_path, method=method)
    worker, child = map(int, (tmp_path / "pids").read_text().split())
    try:
        wait_for(lambda: not is_alive(worker))
        assert is_alive(child)
    finally:
        os.kill(child, 9)


def test_a_child_uses_no_database_connection_of_its_parent(tmp_path: Path) -> None:
    """A forked child opens connections of its own, and does not even close its parent's."""
    program = """
executor = JobExecutor(1, store=f"sqlite:///{Path.cwd() / 'jobs.db'}")
executor.run(job())
executor.flush()
store = executor.store

def connection():
    with contextlib.closing(store._engine.raw_connection()) as pooled:
        return pooled.driver_connection

parents = connection()
assert connection() is parents
parents_fd = {fd for fd in os.listdir("/proc/self/fd") if "jobs.db" in os.path.realpath(f"/proc/self/fd/{fd}")}

def child():
    global parents
    assert connection() is not parents
    del parents
    assert sum(store.counts().values()) == 1
    own = JobExecutor(1, store=f"sqlite:///{Path.cwd() / 'jobs.db'}")
    own.run(job())
    own.shutdown()
    assert parents_fd <= set(os.listdir("/proc/self/fd"))

assert forked(child) == 0
executor.run(job())
executor.flush()
assert sum(store.counts().values()) == 3
executor.shutdown()
print("well")
"""
    assert run(program, tmp_path) == "well\n"


def test_a_child_keeps_no_metrics_port(tmp_path: Path) -> None:
    """The metrics port is free once the parent has exited, and until then a child's executor runs without it."""
    program = """
import socket, urllib.request
logging.disable(logging.CRITICAL)
with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
os.environ["EXECUTOR_ADAPTER_MONITORING__METRICS_PORT"] = str(port)
executor = JobExecutor(1)
executor.run(job())
ready_reader, ready = os.pipe()
done, done_writer = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(done_writer)
    assert JobExecutor(1).metrics_url is None
    os.write(ready, b"0")
    os.read(done, 1)
    os._exit(0)
assert os.read(ready_reader, 1)
assert urllib.request.urlopen(executor.metrics_url).status == 200
executor.shutdown()
with socket.socket() as again:
    # The connection that was just closed may hold the address for a minute; one who listens would hold it all the same.
    again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    again.bind(("127.0.0.1", port))
    again.listen()
os.close(done_writer)
assert os.waitpid(pid, 0)[1] == 0
print("well")
"""
    assert run(program, tmp_path) == "well\n"
