"""A host that is killed in the middle of a chaos run: `python -m tests.contract.chaos.host SEED LOCK_FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.contract.chaos.chaos_run import ChaosRun

if __name__ == "__main__":
    ChaosRun(seed=int(sys.argv[1]), lock_file=Path(sys.argv[2]), processes=5_000, others=200).run(seconds=100)
