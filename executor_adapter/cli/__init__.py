"""The command `executor-adapter`: jobs of a store, one job from the shell, the configuration, and a check-up.

Exit codes, except those of `run` (see run.py): 0 done; 1 not done, because there is no such job or a check failed;
2 wrong use or a wrong configuration; 3 the store cannot be reached; 141 the reader of the output left.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    try:
        from executor_adapter.cli.app import main as run
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.exit("the command needs typer: pip install 'prefect-executor-adapter[cli]'")
    run(arguments)
