"""The maintenance flow: removes what is old, and ends what was left unfinished."""

from __future__ import annotations

import sys
from pathlib import Path

# The modules that config.yaml names are in the project's folder, and this file may be run by its path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from executor_adapter.pipeline.flows import maintenance_flow

__all__ = ["maintenance_flow"]

if __name__ == "__main__":
    maintenance_flow()
