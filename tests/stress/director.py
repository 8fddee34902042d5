"""Directs one seed: forks its programs, waits for each with a bound, and has the whole judged.

Programs are forked from a process that has imported everything and has one thread, since an interpreter that starts and
imports takes longer than most plans. A forked process goes on at the top of `__main__.main`, so that it ends as every
program does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg

from tests.contract.stores.databases import SERVER
from tests.stress.judge import judge
from tests.stress.plan import Plan, ProgramPlan
from tests.stress.program import Program, look_on, sweep
from tests.stress.scene import Scene

at_exit: list[Callable[[], object]] = []
"""Called when a program exits, after all that the executor does then."""


class Forked(BaseException):
    """Raised in a forked process, to run `run` at the top of it."""

    def __init__(self, run: Callable[[], int | None]) -> None:
        self.run = run


def fork(run: Callable[[], int | None]) -> int:
    """Fork a process that runs `run`; return its id."""
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        raise Forked(run)
    return pid


def direct(plan: Plan, folder: Path, bound: float) -> int:
    """Run the plan; write the faults into the folder, and return how many there are."""
    os.setsid()
    os.environ["STRESS_FOLDER"] = str(folder)
    scratch = folder / "scratch"
    scratch.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    scene = Scene(folder=folder, url=_url(plan, folder))
    faults: list[str] = []
    try:
        if plan.onlooker:
            onlooker = fork(functools.partial(_look_on, scene))
        for wave in _waves(plan):
            faults += _play(wave, scene, bound)
        if plan.ends_swept and not faults:
            queues = sorted({executor.options["queue"] for executor in plan.executors})
            pid = fork(functools.partial(_sweep, scene, queues))
            faults += _wait({pid: ("sweep", (None, 0), {0})}, scene, bound)
        (folder / "over").touch()
        if plan.onlooker:
            faults += _wait({onlooker: ("onlooker", (None, 0), {0})}, scene, bound)
        faults += judge(plan, folder, scene.url)
    except Exception as error:
        faults.append("the harness: " + "".join(traceback.format_exception(error)))
    if plan.store == "postgresql":
        assert scene.url is not None
        _execute(f"DROP DATABASE {scene.url.rpartition('/')[2]} WITH (FORCE)")
    (folder / "faults").write_text(json.dumps(faults))
    return len(faults) > 0


def _url(plan: Plan, folder: Path) -> str | None:
    match plan.store:
        case "memory":
            return "memory:"
        case "sqlite":
            return f"sqlite:///{folder}/jobs.db"
        case "postgresql":
            name = f"stress_{plan.seed}_{os.getpid()}"
            _execute(f"CREATE DATABASE {name}")
            return f"{SERVER}/{name}"
    return None


def _execute(statement: str) -> None:
    with psycopg.connect(f"{SERVER}/test", autocommit=True, connect_timeout=30) as connection:
        connection.execute(statement.encode())


def _waves(plan: Plan) -> Iterator[list[tuple[int, ProgramPlan]]]:
    """Yield the programs that run beside one another."""
    wave: list[tuple[int, ProgramPlan]] = []
    for number, program in enumerate(plan.programs):
        if wave and not program.beside:
            yield wave
            wave = []
        wave.append((number, program))
    yield wave


Pause = tuple[float | None, float]
"""After how many seconds a process is stopped, if it is, and for how many."""
Expected = dict[int, tuple[str, Pause, set[int]]]
"""By process id: a name, when it is stopped, and the exit statuses with which it may end."""


def _play(wave: list[tuple[int, ProgramPlan]], scene: Scene, bound: float) -> list[str]:
    processes: Expected = {}
    for number, program in wave:
        pid = fork(functools.partial(_perform, program, scene, str(number)))
        processes[pid] = (
            f"program {number}",
            (program.pause, program.pause_seconds),
            {0}.union(*(_EXITS[death] for death in program.deaths)),
        )
    return _wait(processes, scene, bound)


_EXITS: dict[str, set[int]] = {
    "os._exit": {9},
    "SIGKILL": {-9},
    "SIGTERM": {-15},
    "SIGINT": {1, -2},
    "sys.exit": {5},
    "exception": {1},
}


def _wait(processes: Expected, scene: Scene, bound: float) -> list[str]:
    """Wait for these processes; return a line for each that does not end, or ends in another way than it should."""
    faults = []
    began = time.monotonic()
    left = dict(processes)
    to_stop = {pid: pause for pid, (_, pause, _) in left.items() if pause[0] is not None}
    while left:
        for pid, (name, _, expected) in list(left.items()):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                del left[pid]
                exited = os.waitstatus_to_exitcode(status)
                if exited not in expected:
                    faults.append(f"{name} ended with {exited} and not {expected}")
            elif pid in to_stop and time.monotonic() - began > (to_stop[pid][0] or 0.0):
                _stop(pid, to_stop.pop(pid)[1])
            elif time.monotonic() - began > bound:
                faults.append(f"{name} does not end: its stacks are in {scene.folder}/stacks.{name.split()[-1]}")
                os.kill(pid, signal.SIGUSR1)
                time.sleep(1.0)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                del left[pid]
        time.sleep(0.01)
    return faults


def _stop(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


# --- in the forked processes ---


def _perform(plan: ProgramPlan, scene: Scene, name: str) -> None:
    _redirect(scene, name)
    program = Program(plan, scene, name)
    at_exit.append(program.finish)
    program.run()


def _sweep(scene: Scene, queues: list[str]) -> None:
    _redirect(scene, "sweep")
    sweep(scene, queues)


def _look_on(scene: Scene) -> None:
    _redirect(scene, "onlooker")
    look_on(scene)


def _redirect(scene: Scene, name: str) -> None:
    """Write what the process prints, and on SIGUSR1 its stacks, into files of their own."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(scene.folder / f"output.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    stacks = open(scene.folder / f"stacks.{name}", "w")  # noqa: SIM115  # Until the process ends.
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    faulthandler.enable()


def read_faults(folder: Path, exited: int) -> list[str]:
    """Return the faults that were found; one where the run left none of its findings."""
    with contextlib.suppress(OSError, ValueError):
        found: list[str] = json.loads((folder / "faults").read_text())
        return found
    return [f"its director has exited with {exited}"]
