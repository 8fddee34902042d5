"""A host that is killed or paused in a chaos run: `python -m tests.contract.chaos.host SEED LOCK_FILE [JOBS]`.

Its exit code is 1 if it has found a fault, which it prints.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.contract.chaos.chaos_run import ChaosRun

if __name__ == "__main__":
    processes = int(sys.argv[3]) if len(sys.argv) > 3 else 5_000
    chaos = ChaosRun(seed=int(sys.argv[1]), lock_file=Path(sys.argv[2]), processes=processes, others=200)
    chaos.run(seconds=200)
    faults = chaos.check()
    print(*faults, sep="\n")
    sys.exit(1 if faults else 0)
