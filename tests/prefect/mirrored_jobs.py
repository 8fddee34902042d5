"""Jobs of a program without a flow, mirrored to a server: `python -m tests.prefect.mirrored_jobs 500 [ended]`.

Each job takes 10 ms and appends its number and time to the file `ended`, if there is one.
"""

from __future__ import annotations

import sys
import time

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import PrefectMirror


def note(path: str, number: int) -> None:
    """Append the number and the time of this moment to a file."""
    time.sleep(0.01)
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{number} {time.time()}\n")


if __name__ == "__main__":
    jobs, *ended = sys.argv[1:]
    with PrefectMirror() as mirror, JobExecutor(2, observers=[mirror]) as executor:
        for number in range(int(jobs)):
            function, args = (note, (ended[0], number)) if ended else (dict, ())
            executor.submit(Job(function=function, args=args, pool="thread", job_id=f"killed-{number}"))
