"""A host that is to be killed in the middle of a storm: `python -m tests.contract.chaos.host SEED LEDGER`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.contract.chaos.storm import Storm

if __name__ == "__main__":
    Storm(seed=int(sys.argv[1]), ledger=Path(sys.argv[2]), processes=5_000, others=200).rage(seconds=100)
