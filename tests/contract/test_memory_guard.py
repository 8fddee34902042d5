"""Tests that one job never takes its host along: the memory guard, and what memory_limit counts."""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest

from executor_adapter import Job, JobExecutor
from executor_adapter.exceptions import MemoryLimitError, WorkerCrashedError
from executor_adapter.monitoring import AlertKind, HealthMonitor
from executor_adapter.pools.base import Assignment, PoolSupervisor, WorkerPool
from executor_adapter.pools.memory.available import AvailableMemory, MemoryLevel
from executor_adapter.pools.memory.guard import MemoryGuard
from executor_adapter.pools.process.memory_watch import MemoryWatch
from tests.contract.conftest import MakeExecutor
from tests.contract.process_pool.test_descriptors import no_descriptor_left
from tests.insides import plain_loop, supervisor_of
from tests.unit.test_control_groups import V2_MOUNT, lay_out, v2_group
from tests.waiting import PATIENCE, wait_for

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
LIMIT = 1020
"""MiB of the laid out group: no attempt starts with less than 128 left, and one is ended with less than 64."""
GROUPS = Path("/sys/fs/cgroup/memory")


def hold(size: int, marker: str, release: str = "") -> int:
    """Hold `size` bytes until the file `release` exists; `marker` gets the pid."""
    held = bytearray(os.urandom(1)) * size
    Path(marker).write_text(str(os.getpid()))
    while release and not Path(release).exists():
        time.sleep(0.01)
    return len(held)


class FakeGroup:
    """A control group whose files the test writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def use(self, mebibytes: int, limit: int = LIMIT) -> None:
        group = v2_group(str(limit * MIB), mebibytes)
        lay_out(self.root, "/jobs", V2_MOUNT.format(shown="/"), {"/jobs": group})


@pytest.fixture
def group(tmp_path: Path) -> FakeGroup:
    made = FakeGroup(tmp_path / "system")
    made.use(500)
    return made


@pytest.fixture
def guarded(make_executor: MakeExecutor, group: FakeGroup) -> JobExecutor:
    """An executor that is told that it runs in the group."""
    executor = make_executor(4)
    supervisor_of(executor).dispatcher.memory_guard = MemoryGuard(AvailableMemory(root=group.root))
    return executor


def job(pool: str, folder: Path, name: str, size: int = 1) -> Job:
    """Return a job that holds `size` bytes until its file NAME.end is made."""
    args = (size, str(folder / name), str(folder / f"{name}.end"))
    return Job(function=hold, args=args, pool=pool, job_id=name, retry_attempts=0)


@pytest.mark.parametrize("pool", ["thread", "process"])
def test_no_further_attempt_starts_while_memory_is_short(
    guarded: JobExecutor, group: FakeGroup, tmp_path: Path, pool: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With little memory left, a job waits while another runs, which log, stats and health say, and starts later."""
    guarded.submit(job(pool, tmp_path, "first"))
    wait_for((tmp_path / "first").exists)
    group.use(919)
    wait_for(lambda: guarded.stats().waits_for_memory)
    second = guarded.submit(job(pool, tmp_path, "second"))
    monitor = HealthMonitor(guarded)
    (alert,) = monitor.check()
    assert alert.kind is AlertKind.LOW_MEMORY
    assert re.fullmatch(r"memory is short: 101 MiB of 1020 MiB are left, and \d jobs wait", alert.message)
    assert monitor.check() == []
    with caplog.at_level(logging.INFO, "executor_adapter.memory"):
        group.use(500)
        wait_for((tmp_path / "second").exists)
        wait_for(lambda: "memory is free again" in caplog.text)  # A thread of its own writes the log.
    assert "memory is short: the control group /jobs has 101 MiB of 1020 MiB left" in caplog.text
    assert not guarded.stats().waits_for_memory
    for name in ("first.end", "second.end"):
        (tmp_path / name).touch()
    assert second.result(timeout=PATIENCE) == 1


def test_one_attempt_may_always_run(guarded: JobExecutor, group: FakeGroup, tmp_path: Path) -> None:
    """Memory that others hold delays jobs, but they run, one at a time."""
    group.use(1000)
    futures = [guarded.submit(Job(function=hold, args=(n, str(tmp_path / str(n))))) for n in range(5)]
    assert [future.result(timeout=PATIENCE) for future in futures] == list(range(5))


def test_the_largest_attempt_is_ended_before_memory_runs_out(
    guarded: JobExecutor, group: FakeGroup, tmp_path: Path
) -> None:
    """Of two jobs the larger one is ended as MEMORY_LIMIT with its figures; the other one completes."""
    small = guarded.submit(job("process", tmp_path, "small", 2 * MIB))
    large = guarded.submit(job("process", tmp_path, "large", 150 * MIB))
    wait_for(lambda: (tmp_path / "small").exists() and (tmp_path / "large").exists())
    group.use(2028, limit=2048)  # To end an attempt helps from 102 MiB on: a worker alone has some 50.
    error = large.exception(timeout=PATIENCE)
    assert isinstance(error, MemoryLimitError)
    assert re.match(
        r"its process tree held 1[5-9]\d(\.\d)? MiB, more than any other attempt, when memory ran out: "
        r"the control group /jobs has 20 MiB of 2 GiB left: ",
        error.message,
    )
    (tmp_path / "small.end").touch()
    assert small.result(timeout=PATIENCE) == 2 * MIB  # Ending it would not have helped.
    assert guarded.run(Job(function=hold, args=(1, str(tmp_path / "next")), pool="process")) == 1


def test_an_attempt_that_is_dying_is_waited_for(guarded: JobExecutor, group: FakeGroup, tmp_path: Path) -> None:
    """While memory is critical and a killed job's end is not reported yet, no other job is ended in its place."""
    small = guarded.submit(job("process", tmp_path, "small", 150 * MIB))
    large = guarded.submit(job("process", tmp_path, "large", 250 * MIB))
    wait_for(lambda: (tmp_path / "small").exists() and (tmp_path / "large").exists())
    wait_for(lambda: (tmp_path / "large").read_text())
    worker = int((tmp_path / "large").read_text())
    guardian = parent_of(worker)
    os.kill(guardian, signal.SIGSTOP)  # It reports the end of a worker.
    try:
        os.kill(worker, signal.SIGKILL)  # As the kernel does when memory has run out.
        wait_for(lambda: parts_of_stat(worker)[0] == "Z")
        group.use(1000)
        wait_for_checks(guarded, 3)
        group.use(500)
    finally:
        os.kill(guardian, signal.SIGCONT)
    assert isinstance(large.exception(timeout=PATIENCE), WorkerCrashedError)
    (tmp_path / "small.end").touch()
    assert small.result(timeout=PATIENCE) == 150 * MIB


def test_memory_that_is_free_again_when_all_are_measured_ends_nobody(
    guarded: JobExecutor, group: FakeGroup, tmp_path: Path
) -> None:
    """Attempts take time to be measured: after it the guard looks at the memory again before it ends one."""

    class BriefShortage(AvailableMemory):
        def read(self) -> MemoryLevel | None:
            level = super().read()
            if level is not None and level.is_critical:
                group.use(500)
            return level

    supervisor_of(guarded).dispatcher.memory_guard = MemoryGuard(BriefShortage(root=group.root))
    large = guarded.submit(job("process", tmp_path, "large", 250 * MIB))
    wait_for((tmp_path / "large").exists)
    group.use(1000)
    wait_for_checks(guarded, 3)
    (tmp_path / "large.end").touch()
    assert large.result(timeout=PATIENCE) == 250 * MIB


def wait_for_checks(executor: JobExecutor, count: int) -> None:
    """Wait until the guard has looked so often."""
    guard = supervisor_of(executor).dispatcher.memory_guard
    assert guard is not None
    for _ in range(count):
        due = guard.due
        wait_for(lambda due=due: guard.due != due)  # type: ignore[misc]


def parts_of_stat(pid: int) -> list[str]:
    """Return the state of a process, its parent, ... (proc_pid_stat(5))."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent_of(pid: int) -> int:
    return int(parts_of_stat(pid)[1])


def test_an_idle_worker_that_holds_much_is_ended_when_memory_is_short(
    guarded: JobExecutor, group: FakeGroup, tmp_path: Path
) -> None:
    """What an earlier job left in its worker is given back when memory is short."""
    pid = guarded.run(Job(function=leave_behind, args=(100 * MIB,), pool="process"))
    running = guarded.submit(job("thread", tmp_path, "running"))
    group.use(919)
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    (tmp_path / "running.end").touch()
    running.result(timeout=PATIENCE)


_left: list[bytearray] = []


def leave_behind(size: int) -> int:
    _left.append(bytearray(os.urandom(1)) * size)
    return os.getpid()


def test_the_guard_can_limit_the_program_with_its_workers(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `executor.memory` as a size, the program and its workers together may hold no more."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__MEMORY", "600MiB")
    executor = make_executor(2)
    future = executor.submit(job("process", tmp_path, "large", 580 * MIB))
    error = future.exception(timeout=PATIENCE)
    assert isinstance(error, MemoryLimitError)
    assert re.search(r"executor\.memory has -?[\d.,]+ (MiB|bytes) of 600 MiB left", error.message)


def test_without_a_guard_nothing_is_measured(make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `executor.memory: null` there is no guard, and the stats have no figures of memory."""
    monkeypatch.setenv("EXECUTOR_ADAPTER_EXECUTOR__MEMORY", "null")
    executor = make_executor(1)
    assert supervisor_of(executor).dispatcher.memory_guard is None
    assert executor.stats().memory_left_bytes is None


@pytest.mark.parametrize("size", ["auto", 600 * MIB])
def test_a_guard_that_cannot_read_for_a_moment_looks_again(group: FakeGroup, size: Any) -> None:
    """While no descriptor is left the guard knows nothing and goes on as before; it looks again soon."""
    guard = MemoryGuard(AvailableMemory(size, root=group.root))
    guard.holds = True
    with no_descriptor_left():
        guard.check(100.0, [])
        assert guard.read() is None
    assert guard.holds
    assert 100.0 < guard.due < 101.0


def test_a_guard_that_cannot_measure_attempts_for_a_moment_looks_again(group: FakeGroup) -> None:
    """While memory is critical and no descriptor is left to measure attempts with, the guard raises nothing."""
    group.use(1000)
    guard = MemoryGuard(AvailableMemory(root=group.root))

    class Pool:
        def free_memory(self) -> None:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    guard.check(100.0, [cast(WorkerPool, Pool())])
    assert 100.0 < guard.due < 101.0


# --- what memory_limit counts ---


def test_an_attempt_that_cannot_be_measured_for_a_moment_is_measured_again() -> None:
    """An attempt that holds too much is ended by its memory_limit, also after a moment without descriptors."""
    now = 100.0
    loop = plain_loop(lambda: now)
    ended: list[Assignment] = []
    watch = MemoryWatch(cast(PoolSupervisor, loop), lambda assignment, error: ended.append(assignment))
    worker = Mock(process=Mock(pid=os.getpid()))
    attempt = Assignment(Job(function=hold, args=(1, "")), 1, None, memory_limit=1)
    watch.add(worker, attempt)
    with no_descriptor_left():
        now += 1
        loop.run_due()
    assert not ended
    now += 1
    loop.run_due()
    loop.close()
    assert ended == [attempt]


def fork_while_holding(size: int, count: int) -> int:
    held = bytearray(os.urandom(1)) * size
    started = [pid for _ in range(count) if (pid := os.fork() or _sleep_and_exit(0.5))]
    for pid in started:
        os.waitpid(pid, 0)
    return len(held)


def _sleep_and_exit(seconds: float) -> int:
    time.sleep(seconds)
    os._exit(0)


def test_pages_that_forked_processes_share_count_once(executor: JobExecutor) -> None:
    """A job of 60 MiB that forks six processes stays below a limit of 200 MiB."""
    forking = Job(function=fork_while_holding, args=(60 * MIB, 6), pool="process", memory_limit="200MiB")
    assert executor.run(forking) == 60 * MIB
    assert forking.attempts[0].peak_rss is not None


def fill_memory_file(kind: str, size: int) -> None:
    """Fill a memory file that is not mapped, or mapped memory that is shared, and keep it."""
    chunk = b"x" * MIB
    if kind == "mapped":
        shared = mmap.mmap(-1, size)
        for _ in range(size // MIB):
            shared.write(chunk)
    else:
        fd = os.memfd_create("job") if kind == "memfd" else os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
        for _ in range(size // MIB):
            os.write(fd, chunk)
    time.sleep(120)


@pytest.mark.parametrize("kind", ["memfd", "tmpfs", "mapped"])
def test_memory_files_count_towards_the_limit(executor: JobExecutor, kind: str) -> None:
    """A job that fills a memory file past its memory_limit is ended, whether it maps the file or not."""
    filling = Job(
        function=fill_memory_file, args=(kind, 150 * MIB), pool="process", memory_limit="100MiB", retry_attempts=0
    )
    error = executor.submit(filling).exception(timeout=PATIENCE)
    assert isinstance(error, MemoryLimitError)
    assert re.match(r"its process tree held 1\d\d(\.\d)? MiB", error.message)


# --- in a real control group ---


@contextlib.contextmanager
def limited_group(mebibytes: int) -> Iterator[Path]:
    """Make a control group of version 1 in which processes may use so much memory."""
    directory = GROUPS / f"executor-adapter-{os.getpid()}-{time.monotonic_ns()}"
    try:
        directory.mkdir()
        (directory / "memory.limit_in_bytes").write_text(str(mebibytes * MIB))
    except OSError as error:
        pytest.skip(f"no memory cgroup of version 1 can be made: {error}")
    try:
        yield directory
    finally:
        wait_for(lambda: not (directory / "cgroup.procs").read_text())
        directory.rmdir()


def run_in_group(group: Path, program: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    script = folder / "program.py"
    script.write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GROUP": str(group), **variables}
    enter = f'echo $$ > {group}/cgroup.procs && exec "$0" "$1"'
    command = ["sh", "-c", enter, sys.executable, str(script)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def kill_group_with_its_victim(group: Path, over: threading.Event) -> None:
    """Kill all processes of the group when the kernel has killed one, as it does with memory.oom.group."""
    while not over.wait(0.005):
        if "oom_kill 0" not in (group / "memory.oom_control").read_text():
            for pid in (group / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


HOG_AND_SMALL_JOBS = """
import time
from pathlib import Path
from executor_adapter import Job, JobExecutor

ended = Path(__file__).with_name("ended")

def small():
    held = bytearray(b"x") * (45 << 20)
    while not ended.exists():
        time.sleep(0.01)
    return len(held)

def hog():
    held = []
    while True:
        held.append(bytearray(b"x") * (4 << 20))

with JobExecutor(4) as executor:
    jobs = [Job(function=f, pool="process", retry_attempts=0) for f in (small, small, small, hog)]
    futures = [executor.submit(job) for job in jobs]
    futures[-1].exception()
    ended.touch()
    for future in futures:
        future.exception()
    print(*(job.error_code or job.status.value for job in jobs), jobs[-1].error_message)
"""


def run_hog(folder: Path, memory: str) -> tuple[str, int, int]:
    """Run the program in a group of 700 MiB. Return its output, its exit code, and how many the kernel has killed."""
    with limited_group(700) as group:
        host = run_in_group(group, HOG_AND_SMALL_JOBS, folder, EXECUTOR_ADAPTER_EXECUTOR__MEMORY=memory)
        over = threading.Event()
        killer = threading.Thread(target=kill_group_with_its_victim, args=(group, over))
        killer.start()
        try:
            output, _ = host.communicate(timeout=PATIENCE)
        finally:
            host.kill()
            over.set()
            killer.join()
        kills = int((group / "memory.oom_control").read_text().split()[-1])
    return output, host.returncode, kills


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_a_hog_in_a_container_harms_nobody_else(tmp_path: Path, rounds: int) -> None:
    """In a group of 700 MiB a hog is ended by the guard and not by the kernel, and three small jobs complete."""
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        output, code, kills = run_hog(folder, "auto")
        assert output.startswith("completed completed completed MEMORY_LIMIT its process tree held "), output
        assert (code, kills) == (0, 0)


@pytest.mark.chaos
def test_without_the_guard_a_hog_takes_its_container_along(tmp_path: Path) -> None:
    """With `executor.memory: null` the kernel ends the whole group, and the host with it."""
    output, code, kills = run_hog(tmp_path, "null")
    assert (output, code) == ("", -signal.SIGKILL)
    assert kills > 0


WHO_KILLED = """
import os, signal
from executor_adapter import Job, JobExecutor

def take_all():
    held = [bytearray(b"x") * (4 << 20) for _ in range(1000)]

def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)

def score():
    return int(open("/proc/self/oom_score_adj").read())

with JobExecutor(1) as executor:
    print(executor.run(Job(function=score, pool="process")) - score())
    for function in (take_all, kill_self, take_all):
        error = executor.submit(Job(function=function, pool="process", retry_attempts=0)).exception()
        print(error.error_code, error.message)
"""


def test_a_kill_by_the_kernel_is_told_from_others(tmp_path: Path) -> None:
    """Where the kernel kills a worker for memory, its error says so; another SIGKILL is not blamed on the kernel."""
    with limited_group(192) as group:
        host = run_in_group(group, WHO_KILLED, tmp_path, EXECUTOR_ADAPTER_EXECUTOR__MEMORY="null")
        output, _ = host.communicate(timeout=PATIENCE)
    raised, first, second, third = output.splitlines()
    assert raised == "500"
    assert re.match(r"MEMORY_LIMIT worker \d+ was killed by the kernel, because memory ran out \(an OOM kill", first)
    assert re.match(r"WORKER_CRASHED worker \d+ was killed by SIGKILL, and not by the kernel", second)
    assert third.startswith("MEMORY_LIMIT")
    assert group.name in first
    assert host.returncode == 0


def test_a_killed_worker_is_not_blamed_on_the_kernel(executor: JobExecutor) -> None:
    """A job that was killed by SIGKILL is WORKER_CRASHED, and its message does not say that memory ran out."""
    executor.run(Job(function=os.getpid, pool="process"))
    error = executor.submit(Job(function=kill_self, pool="process", retry_attempts=0)).exception(timeout=PATIENCE)
    assert type(error) is WorkerCrashedError
    assert "because memory ran out" not in error.message


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
