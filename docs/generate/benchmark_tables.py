"""Generates the results of the benchmarks from their data file, which `BENCH_DATA=... make bench` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markdown_text import table

DATA = Path(__file__).parents[1] / "data" / "benchmarks.json"

NO_RESULTS = "No results are recorded yet.\n"


def environment() -> str:
    """Return the machine and the versions of the last measurement as a table."""
    facts = _data()["environment"]
    if not facts:
        return NO_RESULTS
    rows = [
        ("Measured on", facts["measured_on"]),
        ("Cores", str(facts["cores"])),
        ("Memory", f"{facts['memory_gib']} GiB"),
        ("System", facts["system"]),
        ("Python", facts["python"]),
        *((name, version) for name, version in facts["versions"].items()),
    ]
    return table(("", ""), rows)


def results() -> str:
    """Return a table of all results: a median with the lowest and the highest round for each contestant."""
    rows = [
        (
            entry["what"],
            entry["ours"],
            entry["beside"],
            f"**{entry['figure']}**",
            entry["target"].replace(">=", "≥").replace("<=", "≤") + ("" if entry["is_met"] else " (missed)"),
        )
        for entry in _data()["rows"]
    ]
    return table(("measured", "ours", "beside it", "figure", "target"), rows) if rows else NO_RESULTS


def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(DATA.read_text())
    return data
