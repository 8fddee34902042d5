"""`new`: writes the files of a first flow with jobs."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from executor_adapter.cli.output import console
from executor_adapter.exceptions import ConfigurationError


def new(folder: Annotated[Path, typer.Argument(help="The new folder.")]) -> None:
    """Write a first flow with jobs, a test for it and a deployment, from which your own can begin."""
    if folder.exists():
        raise ConfigurationError(f"{folder} is there already: give a new folder")
    folder.mkdir(parents=True)
    for source in (files("executor_adapter.cli") / "first_flow").iterdir():
        (folder / source.name.removesuffix(".txt")).write_text(source.read_text())
    for how, what in {"run": "flow.py", "with pytest, test": "-m pytest", "serve": "serve.py"}.items():
        console().print(f"{how} it: cd {folder} && python {what}", soft_wrap=True)
