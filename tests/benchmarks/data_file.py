"""The data file of the documentation's benchmarks: the newest result of each measurement, with the rounds behind it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Row

COMPARED = ("prefect", "pebble", "pandas", "sqlalchemy", "psycopg", "pydantic")
"""Libraries whose versions matter for the results."""

SIGNIFICANT_DIGITS = 6


def save(rows: Iterable[tuple[Row, float]], path: Path) -> None:
    """Add the rows, each with the load of the machine, to the file; a row replaces one of the same name."""
    data = json.loads(path.read_text()) if path.exists() else {}
    known = {entry["what"]: entry for entry in data.get("rows", [])}
    known |= {row.what: _entry(row, load) for row, load in rows}
    content = {"environment": _environment(), "rows": list(known.values())}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _environment() -> dict[str, Any]:
    """Describe the machine without naming it."""
    pages, page_size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "measured_on": datetime.now(UTC).date().isoformat(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages * page_size / 2**30),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}, {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in COMPARED},
    }


def _entry(row: Row, load: float) -> dict[str, Any]:
    return {
        "what": row.what,
        "ours": row.ours,
        "beside": row.beside,
        "figure": f"{row.figure:{row.form}}",
        "target": row.target,
        "is_met": row.is_met,
        "load": round(load, 1),
        "rounds": {
            name: [float(f"{value:.{SIGNIFICANT_DIGITS}g}") for value in figures.values]
            for name, figures in row.rounds.items()
        },
    }
