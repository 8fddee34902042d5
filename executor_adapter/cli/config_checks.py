"""What `config check` tries out, beyond whether each value is allowed.

They are error codes, modules to preload, the steps and modules of a pipeline, and the store.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from executor_adapter.cli.checks import check_store, project_modules
from executor_adapter.config import FilesTool, FunctionTool, RestTool, Settings, SqlTool
from executor_adapter.error_codes import error_code_of
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import ErrorCode, nearest
from executor_adapter.monitoring import Finding, Level, ProgressBar, ProgressCounts, fine, warning, wrong
from executor_adapter.worker.interpreter import interpreter_command

if TYPE_CHECKING:
    from executor_adapter.pipeline import ConfiguredTable

IMPORT_TIMEOUT = 120.0
"""Seconds that a module to preload may take to be imported."""


def problems(settings: Settings, config_file: Path | None, *, sources: bool = False) -> Iterator[Finding]:
    """Yield what of valid settings will not work, or not as it was probably meant; nothing where all is well.

    With `sources` the first rows of each table are read, and it is said where that was possible too.
    """
    yield from check_codes(settings)
    for module in settings.executor.preload:
        yield from check_preload(module)
    yield from check_pipeline(settings, config_file, sources=sources)
    if settings.store.url is not None and (found := check_store(settings.store.url)).level is not Level.FINE:
        yield found


def check_codes(settings: Settings) -> Iterator[Finding]:
    """Yield the error codes in retry rules that no error of the executor has: such a rule may never match."""
    sections = {"job": settings.job} | {f"tools.{name}.job": tool.job for name, tool in settings.tools.items()}
    for section, job in sections.items():
        for at, rule in enumerate(job.retry.rules):
            for code in rule.codes:
                if code != "*" and "." not in code and code not in set(ErrorCode):  # "module.Class" is a class.
                    yield _unknown_code(f"{section}.retry.rules.{at}.codes", code)


def _unknown_code(key: str, code: str) -> Finding:
    if (near := nearest(code, list(ErrorCode))) is not None:
        return wrong(key, f"{code!r} is not an error code", f"did you mean {near}?")
    return warning(key, f"{code!r} is not an error code of the executor", "the rule matches only errors with your code")


def check_preload(module: str) -> Iterator[Finding]:
    """Yield why a module cannot be imported, as the guardian would: in a new interpreter, from this directory."""
    code = "import importlib, os, sys; sys.path.append(os.path.abspath('.')); importlib.import_module(sys.argv[1])"
    key = "executor.preload"
    try:
        with ProgressBar("config check", lambda: ProgressCounts(note=f"importing {module}"), summary=False):
            command = interpreter_command(code, module)
            done = subprocess.run(command, capture_output=True, text=True, timeout=IMPORT_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        yield wrong(key, f"importing {module} takes more than {IMPORT_TIMEOUT:.0f} s", "leave it out")
        return
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield wrong(key, f"{module!r} cannot be imported: {why}", "install it, or run this where it is found")


def check_pipeline(settings: Settings, config_file: Path | None, *, sources: bool) -> Iterator[Finding]:
    """Yield which steps, functions and schemas that tools name are not there, as `pipeline run` would find them."""
    if not any(isinstance(tool, FilesTool | RestTool | SqlTool | FunctionTool) for tool in settings.tools.values()):
        return
    with project_modules(config_file):
        try:
            from executor_adapter.pipeline import import_references, select_tables

            tables = select_tables(settings)
            yield from map(_as_finding, import_references(tables))
            yield from map(check_source, tables if sources else ())
        except ConfigurationError as error:
            yield _as_finding(error)
        except ModuleNotFoundError as error:
            yield wrong("tools", f"collecting needs {error.name}", "pip install 'prefect-executor-adapter[pipeline]'")


def check_source(table: ConfiguredTable) -> Finding:
    """Return whether the first rows of a table can be read from its source."""
    from executor_adapter.pipeline import read_sample

    try:
        with ProgressBar("config check", lambda: ProgressCounts(note=f"reading {table}"), summary=False):
            return fine(table.key, f"OK: {read_sample(table)}")
    except Exception as error:  # A function of the user's own may raise anything.
        return _as_finding(f"{table.key}: {error_code_of(error)}: {' '.join(str(error).split())}")


def _as_finding(error: object) -> Finding:
    key, _, rest = str(error).partition(": ")
    found, _, way_out = rest.rpartition(": ")
    return wrong(key, found, way_out)
