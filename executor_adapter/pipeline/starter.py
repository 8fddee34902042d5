"""The files of a new pipeline: a configuration, a module with what is its own, a flow, and a file to collect."""

from __future__ import annotations

from pathlib import Path

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.disk import explained

FILES = Path(__file__).parent / "first_pipeline"


def write_starter(folder: Path) -> list[Path]:
    """Write the files of a new pipeline into a folder, and return their paths.

    Raises:
        ConfigurationError: one of them is there already; nothing was written.
    """
    names = ("config.yaml", "my_rules.py", "flow.py", "inbox/orders.csv")
    there = [str(folder / name) for name in names if (folder / name).exists()]
    if there:
        raise ConfigurationError(f"{', '.join(there)} is there already: choose an empty folder")
    for name in names:
        with explained(folder / name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            # By that suffix nothing takes them for modules of this package.
            (folder / name).write_bytes((FILES / f"{name}.txt").read_bytes())
    return [folder / name for name in names]
