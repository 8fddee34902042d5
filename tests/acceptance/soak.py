"""A program that collects for a day of compressed time, and measures what it holds every simulated hour.

    python soak.py URL FOLDER SECONDS

Every simulated five minutes it collects from ten tools: from five in a flow run, from five by the CollectionScheduler.
Some jobs fail, for good or once: the server answers 500, a worker crashes, a job hangs, data is broken. It prints a
line of JSON for each hour, and one with all outcomes in the end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from prefect import flow

from executor_adapter import Job, JobExecutor, JobStatus, RetryPolicy, Transition, current_job
from executor_adapter.config import Settings
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.prefect import PRELOAD, arun_jobs
from executor_adapter.scheduler import CollectionScheduler
from executor_adapter.store import open_store
from tests.waiting import PATIENCE

HOURS = 24
TICKS_PER_HOUR = 12
TOOLS = 10
FAULTS = ("server error", "crash", "hang", "broken data")
FAULT_SHARE = 0.05
FAILING = ("hang", "broken data")
"""Faults that no retry helps against."""
MARK = "SOAK_MARK"
"""A variable of the environment that marks the processes of one program."""
MAX_RUNTIME = 2.0
KEPT_SECONDS = 30.0
"""Seconds for which ended jobs stay in the store: a simulated hour is as long, or nearly."""


def collect(url: str, folder: str, tool: int, tick: int, fault: str) -> dict[str, int]:
    """Collect what a tool has at a tick, and add it to the tool's file of the day."""
    first = current_job().attempt == 1
    if fault == "crash" and first:
        os._exit(11)
    if fault == "hang":
        time.sleep(3600)
    if fault == "broken data":
        raise DataCollectionException("not what was agreed", error_code="DATA_ERROR")
    path = "/broken" if fault == "server error" and first else f"/rows/{tool}/{tick}"
    rows = httpx.get(url + path, timeout=PATIENCE).raise_for_status().json()
    file = Path(folder, f"tool-{tool}.json")
    known = json.loads(file.read_text()) if file.exists() else {}
    known[str(tick % (HOURS * TICKS_PER_HOUR))] = len(rows)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(known))
    temporary.rename(file)
    return {"records_collected": len(rows)}


def fault_of(tool: int, tick: int) -> str:
    chance = random.Random(1000 * tool + tick)
    return chance.choice(FAULTS) if chance.random() < FAULT_SHARE else ""


class Account:
    """Counts the ends of jobs by what was to become of them."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.faults: dict[str, str] = {}

    def __call__(self, transition: Transition) -> None:
        job = transition.job
        if transition.status.is_terminal:
            fault = self.faults.pop(job.job_id)
            self.ends[f"{fault or 'no fault'}: {job.status} {job.error_code or ''}".strip()] += 1
            if (job.status is JobStatus.FAILED) != (fault in FAILING):
                self.wrong.append(f"{job.job_id} {fault}: {job.status} {job.error_code} {job.error_message}")


class Soak:
    """The program: its executor, its scheduler and its account."""

    def __init__(self, url: str, folder: Path, seconds: float) -> None:
        self.url = url
        self.folder = folder
        self.tick_seconds = seconds / (HOURS * TICKS_PER_HOUR)
        self.account = Account()
        self.settings = Settings.model_validate(
            {
                "store": {"url": f"sqlite:///{folder / 'jobs.db'}"},
                "executor": {"preload": (*PRELOAD, "tests.acceptance.soak", "httpx"), "kill_grace": 0.2},
                "collection": {"max_concurrent_jobs": 2},
            }
        )

    def job(self, tool: int, tick: int) -> Job:
        fault = fault_of(tool, tick)
        job = Job(
            function=collect,
            args=(self.url, str(self.folder), tool, tick, fault),
            job_id=f"{tick:03}-{tool}",
            pool="process" if tool % 2 == 0 or fault in {"crash", "hang"} else "thread",
            tool_name=f"tool-{tool}",
            max_runtime=MAX_RUNTIME,
            retry=RetryPolicy(retry_attempts=0 if fault == "hang" else 2, retry_delay=0.1, crash_attempts=5),
            dedupe_key=None,
        )
        self.account.faults[job.job_id] = fault
        return job

    async def run(self) -> None:
        store = open_store(str(self.settings.store.url))
        scheduler = CollectionScheduler(config=self.settings, observers=[self.account], store=store)
        await scheduler.start()
        with JobExecutor(2, config=self.settings, observers=[self.account], store=store) as executor:

            @flow(name="soak")
            async def collection(tick: int) -> None:
                results = await arun_jobs([self.job(tool, tick) for tool in range(5)], executor=executor)
                assert len(results) == 5

            begun = time.monotonic()
            for tick in range(HOURS * TICKS_PER_HOUR):
                await asyncio.sleep(max(0.0, begun + tick * self.tick_seconds - time.monotonic()))
                for tool in range(5, TOOLS):
                    await scheduler.job_queue.add_job(self.job(tool, tick))
                await collection(tick)
                if tick % TICKS_PER_HOUR == TICKS_PER_HOUR - 1:
                    store.cleanup(max_age_hours=KEPT_SECONDS / 3600)
                    print(json.dumps(self.measure(tick, begun)), flush=True)
            while self.account.faults:
                await asyncio.sleep(0.1)
        await scheduler.stop()
        store.close()
        print(json.dumps({"ends": self.account.ends, "wrong": self.account.wrong}), flush=True)

    def measure(self, tick: int, begun: float) -> dict[str, Any]:
        gc.collect()
        processes = own_processes()
        return {
            "hour": (tick + 1) // TICKS_PER_HOUR,
            "seconds": round(time.monotonic() - begun, 1),
            "rss_mib": round(rss(os.getpid()), 1),
            "tree_mib": round(sum(map(rss, processes)), 1),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "processes": len(processes),
            "disk_kib": sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file()) // 1024,
        }


def own_processes() -> list[int]:
    """Return all processes that this one has started, however they were started: they have its environment."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:  # It has ended, or is another user's.
            continue
        if mark in variables and path.name != str(os.getpid()):
            found.append(int(path.name))
    return found


def rss(pid: int) -> float:
    """Return the resident memory of a process in MiB; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return 0.0


if __name__ == "__main__":
    from tests.acceptance import soak  # Its functions must be importable by workers, and __main__ is not.

    asyncio.run(soak.Soak(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])).run())
