"""The command `executor-adapter`: jobs of a store, one job from the shell, the configuration, and a check-up.

Exit codes, except those of `run` (see run.py): 0 done; 1 not done, because there is no such job or a check failed;
2 wrong use or a wrong configuration; 3 the store cannot be reached; 141 the reader of the output left.
"""

from __future__ import annotations

from executor_adapter.cli.app import main

__all__ = ["main"]
