"""The maintenance flow, ready-made: removes what is old, and ends what was left unfinished.

A worker runs it from this file, and so in the folder of config.yaml: older Prefects change into it for files alone.
"""

from __future__ import annotations

from executor_adapter.pipeline.flows import maintenance_flow

__all__ = ["maintenance_flow"]

if __name__ == "__main__":
    maintenance_flow()
