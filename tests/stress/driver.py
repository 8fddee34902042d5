"""Runs seeds, some at a time, each in a process of its own, and tells their faults."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.stress.director import direct, fork, read_faults
from tests.stress.plan import Plan, draw


@dataclass(frozen=True)
class RunningSeed:
    plan: Plan
    folder: Path
    began: float


def drive(options: argparse.Namespace) -> int:
    """Run the seeds that the options name; return 1 if one has faults."""
    without = tuple(name for name in options.without.split(",") if name)
    seeds = _seeds(options)
    if options.words:
        for seed in seeds:
            print(draw(seed, without).words())
        return 0
    gc.freeze()
    tally = Tally()
    running: dict[int, RunningSeed] = {}
    while True:
        is_over = options.seconds is not None and tally.seconds > options.seconds
        while len(running) < options.jobs and not is_over and (next_seed := next(seeds, None)) is not None:
            plan = draw(next_seed, without)
            folder = Path(tempfile.mkdtemp(prefix=f"stress-{next_seed}-"))
            director = fork(functools.partial(direct, plan, folder, options.bound))
            running[director] = RunningSeed(plan, folder, time.monotonic())
        if not running:
            break
        pid, exited = _next_ended(running, 10 * options.bound)
        ended = running.pop(pid)
        if not tally.count(ended, exited) and not options.keep:
            shutil.rmtree(ended.folder, ignore_errors=True)
    print(f"{tally}, the slowest {tally.slowest:.1f} s", flush=True)
    return 1 if tally.failed else 0


class Tally:
    """Counts seeds, tells the faults of each, and once a minute how many there were."""

    def __init__(self) -> None:
        self.failed = 0
        self.slowest = 0.0
        self._ran = 0
        self._began = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def __str__(self) -> str:
        return f"{self._ran} seeds in {self.seconds:.0f} s, {self.failed} of them with faults"

    def count(self, seed: RunningSeed, exited: int) -> bool:
        """Count a seed whose director has exited; return whether it has faults."""
        took = time.monotonic() - seed.began
        self.slowest = max(self.slowest, took)
        self._ran += 1
        if faults := read_faults(seed.folder, exited):
            self.failed += 1
            print(f"\nFAULTS after {took:.1f} s, files in {seed.folder}\n{seed.plan.words()}")
            print("\n".join(f"  - {fault}" for fault in faults[:12]))
            print(f"  again: python -m tests.stress --seed {seed.plan.seed}", flush=True)
        if time.monotonic() - self._told > 60.0:
            self._told = time.monotonic()
            print(f"{self}, the last {seed.plan.seed}", flush=True)
        return bool(faults)


def _next_ended(running: dict[int, RunningSeed], bound: float) -> tuple[int, int]:
    """Wait for one of them to end, and return how it has exited.

    One that takes longer than the bound is killed, with all that it has started.
    """
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            return pid, os.waitstatus_to_exitcode(status)
        for pid, seed in running.items():
            if time.monotonic() - seed.began > bound:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)


def _seeds(options: argparse.Namespace) -> Iterator[int]:
    first, _, last = options.seeds.partition("-")
    given = range(int(first), int(last or first) + 1) if first else ()
    endless = itertools.count(options.first) if options.first is not None else ()
    return itertools.chain(options.seed, given, endless)
