"""A reporter that writes what it gets, with its environment, to the file that REPORT names, in one step."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    file = Path(os.environ["REPORT"])
    report = json.load(sys.stdin) | {"server": os.environ.get("SERVER")}
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(report))
    part.rename(file.with_name(f"{file.name}-{report['server']}"))
