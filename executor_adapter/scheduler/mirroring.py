"""Whether a scheduler's jobs are task runs in Prefect too, as the settings' `prefect.mirror` has it.

Prefect itself says whether an API is configured for it, and takes a second to import. So it is asked only where it is
imported already, or where something hints at an API: a variable of the environment, or a file that Prefect reads.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from executor_adapter.config import MirrorMode
from executor_adapter.job.transition import Observer

if TYPE_CHECKING:
    from executor_adapter.executor.executor import JobExecutor

logger = logging.getLogger("executor_adapter")

MIRROR = "executor_adapter.prefect.mirror.scheduler_mirror"
"""By its name, since only that package may import Prefect."""

VARIABLES = frozenset({"PREFECT_API_URL", "PREFECT_API", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"})
MENTIONS = {"prefect.toml": "", ".env": "PREFECT_", "pyproject.toml": "tool.prefect"}
"""Files of the working directory that Prefect reads, and what they hold if they say anything to it."""


class SchedulerMirror(Protocol):
    """Tells Prefect of one executor's jobs."""

    def attach(self, executor: JobExecutor) -> None:
        """Mirror each job of this executor from now on, until that is closed, and end with it."""

    def hurry(self) -> None:
        """When the executor is closed, leave the server little time."""


def mirror_for(mode: MirrorMode, observers: Iterable[Observer]) -> SchedulerMirror | None:
    """What is to mirror a scheduler's jobs, by Prefect's settings in force; None where nothing is to, or one of its
    `observers` does already.

    It asks no server, but may import Prefect: not for an event loop's thread. Where Prefect cannot be used the log
    says so, and nothing is mirrored.
    """
    if mode == "never" or (mode == "auto" and not _is_hinted_at()):
        return None
    try:
        made: SchedulerMirror | None = _imported(MIRROR).make_mirror(observers, always=mode == "always")
    except Exception as error:
        logger.warning("jobs are not mirrored, since Prefect cannot be used here: %s: %s", type(error).__name__, error)
        return None
    return made


def _is_hinted_at() -> bool:
    """Whether a Prefect API may be configured."""
    if "prefect.settings" in sys.modules or any(name.upper() in VARIABLES for name in os.environ):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()
    return (home / "profiles.toml").exists() or any(_mentions(Path(name), text) for name, text in MENTIONS.items())


def _mentions(path: Path, text: str) -> bool:
    try:
        return text.upper() in path.read_text(errors="replace").upper()
    except OSError:
        return False


def _imported(name: str) -> Any:
    """The module. The root logger stays as the program has set it up: Prefect puts a handler of its own there."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return importlib.import_module(name)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
