"""Programs in processes of their own: what each took, and the row of the table that says it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.figures import Figures, Row


class Usage(NamedTuple):
    """What a program took, of which all processes have ended."""

    cpu: float
    """Seconds of all its processes."""
    wall: float
    """Seconds from its start to its end."""
    peak: float
    """Megabytes of its largest process."""
    printed: str


def usage(*arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Usage:
    """Run a module of Python, and return what it took."""
    os.sync()  # What was written before is not written during the measurement.
    began = time.perf_counter()
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd, env=env) as program:
        printed = program.stdout.read() if program.stdout else ""
        _, status, used = os.wait4(program.pid, 0)
        program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode:
        raise subprocess.CalledProcessError(program.returncode, arguments)
    return Usage(used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss / 1024, printed)


def row(
    what: str,
    field: str,
    mine: Sequence[Usage],
    others: Mapping[str, Sequence[Usage]],
    at_most: float | None = None,
    form: str = ",.1f",
) -> Row:
    """Return a row of the table, whose figure is our own; the others are by the names that it shows."""
    found = {name: Figures(tuple(getattr(run, field) for run in runs)) for name, runs in others.items()}
    ours = Figures(tuple(getattr(run, field) for run in mine))
    return Row(
        what=what,
        ours=ours.summary(form),
        beside="; ".join(f"{name}: {figures.summary(form)}" for name, figures in found.items()),
        figure=ours.median,
        form=form,
        at_most=at_most,
        rounds={"ours": ours, **found},
    )
