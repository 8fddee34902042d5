"""Judges a seed that has run: by its journal, its reports, and the rows of its store over a connection of its own."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from tests.contract.chaos.leftovers import marked_by
from tests.stress.plan import Plan

ROWS = "SELECT job_id, status, attempt, error_code, attempts FROM executor_adapter_jobs"
TERMINAL = ("completed", "failed", "cancelled")


class Row(NamedTuple):
    status: str
    attempt: int
    code: str | None
    attempts: int


def judge(plan: Plan, folder: Path, url: str | None) -> Iterator[str]:
    """Yield a line for each fault."""
    journal = (folder / "journal").read_text().splitlines() if (folder / "journal").exists() else []
    events = [line.split(" ") for line in journal]
    reports = {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("report.*"))}
    for name, report in reports.items():
        yield from (f"{name}: {fault}" for fault in report["faults"])
    finals = _finals(reports)
    if plan.loses_leases:  # What two hosts have run has two ends, of which the row shows one.
        several = Counter(job["id"] for report in reports.values() for job in report["jobs"])
        finals = {job_id: final for job_id, final in finals.items() if several[job_id] == 1}
    if url is not None and url != "memory:":
        yield from _judge_rows(plan, _rows(url), finals, _accepted(events, reports))
    if plan.is_whole:
        yield from _judge_begins(plan, events, reports)
    for pid in marked_by([f"STRESS_FOLDER={folder}".encode()]):
        yield f"process {pid} is left: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}"


def _finals(reports: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return how each job ended at last: one that was put back for another host has not ended."""
    finals: dict[str, dict[str, Any]] = {}
    for final in sorted((job for report in reports.values() for job in report["jobs"]), key=lambda job: job["at"]):
        if not final["requeued"]:
            finals[final["id"]] = final
    return finals


def _accepted(events: list[list[str]], reports: dict[str, Any]) -> set[str]:
    """Return the jobs that the store must have: all that a program has accepted and not been killed before a flush."""
    reported = {job["id"] for report in reports.values() for job in report["jobs"]}
    return reported | {job_id for kind, *ids in events if kind == "flushed" for job_id in ids}


def _rows(url: str) -> dict[str, Row]:
    if url.startswith("sqlite:///"):
        connection: Any = sqlite3.connect(url.removeprefix("sqlite:///"))
    else:
        connection = psycopg.connect(url)
    try:
        found = connection.execute(ROWS).fetchall()
    finally:
        connection.close()
    return {job_id: Row(status, attempt, code, len(json.loads(rest))) for job_id, status, attempt, code, rest in found}


def _judge_rows(
    plan: Plan, rows: dict[str, Row], finals: dict[str, dict[str, Any]], accepted: set[str]
) -> Iterator[str]:
    if missing := sorted(accepted - rows.keys()):
        yield f"{len(missing)} of {len(accepted)} accepted jobs have no row: {missing[:5]}"
    for job_id, final in finals.items():
        wanted = Row(final["status"], final["attempt"], final["code"], final["attempts"])
        if (row := rows.get(job_id)) is not None and row != wanted:
            yield f"{job_id} ended as {wanted}, and its row is {row}"
    if plan.ends_swept or (plan.is_whole and not plan.requeues):
        live = [f"{job_id} {row.status}" for job_id, row in rows.items() if row.status not in TERMINAL]
        if live:
            yield f"{len(live)} rows are live in the end: {live[:5]}"


def _judge_begins(plan: Plan, events: list[list[str]], reports: dict[str, Any]) -> Iterator[str]:
    """Compare the attempts that began with those that were counted."""
    counted: Counter[str] = Counter()
    for report in reports.values():
        latest: dict[str, int] = defaultdict(int)
        for job in report["jobs"]:
            counted[job["id"]] += job["attempt"]
            latest[job["id"]] = job["attempt"]
    twice = any(executor.hooks == "twice" for executor in plan.executors)
    begun = Counter(event[1] for event in events if event[0] == "begin")
    for job_id, number in begun.items():
        if job_id in counted and number > counted[job_id] * (2 if twice else 1):
            yield f"{job_id} began {number} times in {counted[job_id]} attempts"
    ended: set[str] = set()
    for kind, job_id, *rest in events:
        if kind == "state":
            ended.add(job_id) if rest[0] in TERMINAL else ended.discard(job_id)
        elif kind == "begin" and job_id in ended:
            yield f"{job_id} began after it had ended"
