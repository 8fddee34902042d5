"""A host with a sentinel: `python -m tests.unit.sentinel_host HOW FILE`. It prints its sentinel's process id.

HOW is what it does after it has announced its flow runs: `exit`, `sleep`, `fork`, where a child sleeps too, `lose`: it
kills its sentinel, announces one more, and sleeps, `watch`: the same, but it looks after its sentinel instead, `many`:
as `watch`, after many more flow runs, or `stop`: it stops its sentinel, and announces many more.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from executor_adapter.executor import sentinel

sentinel.REPORTER = "tests.unit.fake_reporter"


def main(how: str, file: str) -> None:
    os.environ["REPORT"] = file
    for run_count in (1, 2, 2):
        sentinel.sentinel_client.announce("first", run_count, {"SERVER": "one"})
    sentinel.sentinel_client.announce("second", 1, {"SERVER": "two"})
    print(sentinel.sentinel_client.pid, flush=True)
    if how == "fork" and os.fork() == 0:
        print(os.getpid(), sentinel.sentinel_client.pid, flush=True)
    if how == "stop":
        assert sentinel.sentinel_client.pid is not None
        os.kill(sentinel.sentinel_client.pid, signal.SIGSTOP)
    if how in ("many", "stop"):
        for number in range(600):
            sentinel.sentinel_client.announce(f"more-{number}", 1, {"SERVER": "two"})
    if how == "stop":
        print(sentinel.sentinel_client.pid, flush=True)
    if how in ("lose", "watch", "many"):
        kill_sentinel()
        if how == "lose":
            sentinel.sentinel_client.announce("third", 1, {"SERVER": "one"})
        else:
            sentinel.sentinel_client.ensure_alive()
        print(sentinel.sentinel_client.pid, flush=True)
    if how != "exit":
        time.sleep(60)


def kill_sentinel() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    pid = sentinel.sentinel_client.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


if __name__ == "__main__":
    main(*sys.argv[1:])
