"""One program of a plan, in the process that is forked for it: it runs its executors, ends, and reports what it saw."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

from executor_adapter import Job, JobExecutor
from executor_adapter.job.status import TERMINAL
from executor_adapter.store import JobFilter
from executor_adapter.worker.presence import own_presence
from tests.contract.chaos.leftovers import ResourceSnapshot
from tests.stress import functions
from tests.stress.executors import settings
from tests.stress.plan import ProgramPlan
from tests.stress.run import Run
from tests.stress.scene import Common, Scene, Watch

LEFTOVER_SECONDS = 60.0
"""Seconds in which what a program has used must be gone: abandoned threads and the kernel need some time."""

EXPECTED_LOG: tuple[str, ...] = (
    "observer",
    "a callback of a job's future failed",
    "exception calling callback",
    "cannot be stopped and is abandoned",
    "times while it ran",  # Of a job in a thread whose program died, which is quarantined.
)
"""What the log may say at level ERROR, since a plan has drawn the reason."""


class Program:
    def __init__(self, plan: ProgramPlan, scene: Scene, name: str) -> None:
        self._plan = plan
        self._scene = scene
        self._runs: list[Run] = []
        self._common = Common(plan=plan, scene=scene, name=name)
        log = ErrorLog(self._common.faults)
        if any(job.kind == "be_stubborn_on_loop" for each in plan.executors for job in each.jobs):
            log.expected += ("Task was destroyed but it is pending!",)  # Abandoned, and still there at the end.
        if any(executor.settings["lease"] for executor in plan.executors):
            log.expected += ("the lease on", "another host has taken over")
        self._use_once()
        self._before = ResourceSnapshot.now(scene.scratch, orphans=False)
        functions.submit_child = self._submit_child

    def run(self) -> None:
        """Run all executors; called on the main thread, and may raise what ends the program."""
        if not self._plan.together:
            for plan in self._plan.executors:
                self._runs.append(Run(plan, self._common))
                self._runs[-1].run()
            return
        self._runs += [Run(plan, self._common) for plan in self._plan.executors]
        raised: list[BaseException] = []
        threads = [threading.Thread(target=self._run_in_thread, args=(run, raised)) for run in self._runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]

    def _run_in_thread(self, run: Run, raised: list[BaseException]) -> None:
        try:
            run.run()
        except BaseException as error:
            raised.append(error)

    def _submit_child(self, name: str) -> Any:
        run = next((run for run in self._runs if name in {plan.name for plan in run.plan.jobs}), None)
        return None if run is None else run.add_child()

    # --- at exit, after the executors' own ---

    def finish(self) -> None:
        """Check everything, and write the report."""
        faults = self._common.faults
        for run in self._runs:
            faults += [*run.check(), *run.check_memory()]
        finals = [final for run in self._runs for final in run.finals()]
        self._common.close_stores()
        self._runs.clear()
        functions.submit_child = functions.submit_nothing
        JobExecutor(1, config=settings({})).shutdown()  # On this thread, which alone can set the signal watch back.
        faults += [f"left: {kind} {list(what)}" for kind, what in self._left().items()]
        report(self._scene, self._common.name, faults, finals)

    def _use_once(self) -> None:
        """Use an executor on this thread, so that there is what a process has only once."""
        with JobExecutor(1, config=settings({})) as executor:
            executor.run(Job(function="math:sqrt", args=(4,), pool="thread"))
        own_presence()

    def _left(self) -> Mapping[str, Collection[Any]]:
        until = time.monotonic() + LEFTOVER_SECONDS
        while True:
            left = ResourceSnapshot.now(self._scene.scratch, orphans=False).beyond(self._before)
            for kind, is_ours in _OURS.items():
                if found := frozenset(filter(is_ours, left.pop(kind, ()))):
                    left[kind] = found
            if not left or time.monotonic() > until:
                return left
            time.sleep(0.05)


_OURS: Mapping[str, Callable[[Any], bool]] = {
    "shared": lambda name: "memfd" in name,  # The names in /dev/shm are of all programs, and the executor makes none.
    "threads": lambda name: not name.startswith("executor-output "),  # A process has one, once a job has printed.
    "descriptors": lambda found: not found[1].endswith("/journal"),  # A thread may be stopped while it has it open.
}


class ErrorLog(logging.Handler):
    """Adds to the faults what is logged as an error, and other signs of something that nobody expected."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.expected = EXPECTED_LOG
        self._faults = faults
        logging.getLogger().addHandler(self)
        logging.captureWarnings(True)
        warnings.simplefilter("always")
        sys.unraisablehook = lambda found: faults.append(f"unraisable: {found.exc_value!r} in {found.object!r}")
        threading.excepthook = lambda found: faults.append(f"a thread ended by {found.exc_value!r}")

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        if not any(expected in text for expected in self.expected):
            self._faults.append(f"log: {text[-1500:]}")


def report(scene: Scene, name: str, faults: list[str], finals: list[dict[str, Any]]) -> None:
    """Write what a program has seen."""
    (scene.folder / f"report.{name}").write_text(json.dumps({"faults": faults, "jobs": finals}))


def sweep(scene: Scene, queues: Collection[str]) -> None:
    """Run what other programs have left in the store, as a last program."""
    faults: list[str] = []
    ErrorLog(faults)
    finals = []
    chosen = settings({"recover_every": 0.1, "pickle_arguments": True})
    for queue in queues:
        watch = Watch(scene.journal)
        with JobExecutor(
            4, config=chosen, store=scene.url, queue=queue, observers=(watch,), capacity={"license": 3}
        ) as executor:
            store, wanted = executor.store, JobFilter(queue=queue)
            assert store is not None
            while any(count for status, count in store.counts(wanted).items() if status not in TERMINAL):
                time.sleep(0.05)
        faults += watch.faults
        finals += watch.finals(requeues=False)
    report(scene, "sweep", faults, finals)


def look_on(scene: Scene) -> None:
    """Open the store, read it and close it, again and again, until the programs are over."""
    while not (scene.folder / "over").exists():
        with scene.opened() as store:
            store.counts()
        time.sleep(0.02)
