"""Jobs of a program without a flow, mirrored to a server: `python -m tests.prefect.mirrored_jobs 500`."""

from __future__ import annotations

import sys

from executor_adapter import Job, JobExecutor
from executor_adapter.prefect import PrefectMirror

if __name__ == "__main__":
    with PrefectMirror() as mirror, JobExecutor(2, observers=[mirror]) as executor:
        for number in range(int(sys.argv[1])):
            executor.submit(Job(function=dict, pool="thread", job_id=f"killed-{number}"))
