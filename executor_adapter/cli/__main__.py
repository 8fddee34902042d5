"""`python -m executor_adapter.cli`: runs the command where its script is not on the path."""

from __future__ import annotations

from executor_adapter.cli import main

if __name__ == "__main__":
    main()
