"""Decides whether a scheduler's jobs are task runs in Prefect too, by the setting `prefect.mirror`.

Prefect itself knows whether an API is configured, but takes a second to import. So it is asked only if it is imported
already, or if something hints at an API: an environment variable, or a file that Prefect reads.
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
from executor_adapter.job import Observer

if TYPE_CHECKING:
    from executor_adapter.executor import JobExecutor

logger = logging.getLogger("executor_adapter")

MIRROR = "executor_adapter.prefect.bulk.executor_mirror"
"""The module's name, not an import, because only `executor_adapter.prefect` may import Prefect."""

HINT_VARIABLES = frozenset({"PREFECT_API_URL", "PREFECT_API", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"})
HINT_FILES = {"prefect.toml": "", ".env": "PREFECT_", "pyproject.toml": "tool.prefect"}
"""Files in the working directory that Prefect reads, and the text that they contain if they configure it."""


class SchedulerMirror(Protocol):
    """Reports one executor's jobs to Prefect."""

    def attach(self, executor: JobExecutor) -> None:
        """Mirror each job of this executor from now on, and stop when the executor is closed."""

    def hurry(self) -> None:
        """Leave the server little time when the executor is closed."""


def mirror_for(mode: MirrorMode, observers: Iterable[Observer]) -> SchedulerMirror | None:
    """Return a mirror for a scheduler's jobs; None where they are not mirrored, or one of `observers` does it already.

    It asks no server, but it may import Prefect, which is too slow for an event loop's thread. Where Prefect cannot be
    used, it logs a warning and returns None.
    """
    if mode == "never" or not _is_hinted_at():
        return None
    try:
        made: SchedulerMirror | None = _imported(MIRROR).make_mirror(observers)
    except Exception as error:
        logger.warning("jobs are not mirrored, since Prefect cannot be used here: %s: %s", type(error).__name__, error)
        return None
    return made


def _is_hinted_at() -> bool:
    """Return whether a Prefect API seems to be configured."""
    if "prefect.settings" in sys.modules or any(name.upper() in HINT_VARIABLES for name in os.environ):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()
    return (home / "profiles.toml").exists() or any(_mentions(Path(name), text) for name, text in HINT_FILES.items())


def _mentions(path: Path, text: str) -> bool:
    try:
        return text.upper() in path.read_text(errors="replace").upper()
    except OSError:
        return False


def _imported(name: str) -> Any:
    """Import a module and return it, without the handler that Prefect adds to the program's root logger."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        return importlib.import_module(name)
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
