"""The command `executor-adapter`: jobs of a store, one job from the shell, the configuration, and what is wrong here.

Exit codes, but for those of `run` (see run.py): 0 done, 1 it could not be done (no such job; a check found something),
2 it was asked for wrongly, or the configuration is wrong, 3 the store cannot be reached.
"""

from __future__ import annotations

from executor_adapter.cli.app import main

__all__ = ["main"]
