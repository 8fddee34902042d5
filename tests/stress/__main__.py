"""Runs random programs and checks all of them: `python -m tests.stress --seed 123`, `--seeds 0-999`, or `--from 0`.

Each seed runs in a process of its own, within a bound: one that does not end is a fault too, with the stacks of its
threads. A fault is told with its seed, its plan in words and the folder of its files. `--without hooks,tools` leaves
features out, to find which ones it takes.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import sys
from collections.abc import Callable


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress", description="Run random programs by their seeds.")
    parser.add_argument("--seed", type=int, action="append", default=[], help="a seed; may be given several times")
    parser.add_argument("--seeds", default="", help="a range of seeds, such as 0-999")
    parser.add_argument("--from", dest="first", type=int, help="after those, all seeds from this one on")
    parser.add_argument("--seconds", type=float, help="begin no further seed after so many seconds")
    parser.add_argument("--jobs", type=int, default=1, help="seeds that run at the same time")
    parser.add_argument(
        "--bound", type=float, default=300.0, help="seconds after which a program counts as one that hangs"
    )
    parser.add_argument("--without", default="", help="features to leave out, such as hooks,observers,death")
    parser.add_argument("--keep", action="store_true", help="keep the files of seeds without faults too")
    parser.add_argument("--words", action="store_true", help="print the plans, and run none")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the seeds; return the exit status. In each forked process it runs what that was forked for."""
    finish: list[Callable[[], object]] = []
    # Before the executor is imported: what is registered first is called last, and so sees what is left.
    atexit.register(lambda: [call() for call in finish])
    from tests.stress import director, driver

    director.at_exit = finish
    run: Callable[[], int | None] = functools.partial(driver.drive, parse(arguments))
    while True:
        try:
            return run() or 0
        except director.Forked as forked:
            run = forked.run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
