"""The sources of the settings: which file is read, and what the environment and `.env` override.

A ConfigurationError names what is wrong in one line: the place, the key, its value, and what is allowed.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource, SettingsError

from executor_adapter.config.errors import describe, nearest_of, one_line, read_yaml, top_level_keys
from executor_adapter.config.sections import Section
from executor_adapter.config.settings import ENV_PREFIX, DotEnvSource, Settings
from executor_adapter.exceptions import ConfigurationError

CONFIG_VARIABLE = f"{ENV_PREFIX}CONFIG"
"""The variable of the environment, or of `.env`, that names the file."""
OTHER_VARIABLES = frozenset({CONFIG_VARIABLE, f"{ENV_PREFIX}TREE", f"{ENV_PREFIX}NODE_DATA"})
"""Variables with the prefix that are not settings; the second marks what a worker process has started."""
MIN_SIMILARITY = 0.75
"""The difflib ratio from which an unknown key counts as a misspelt section."""


def load_config(path: str | Path | None = None) -> Settings:
    """Return the settings in force: those of the file, with `.env` and the environment over them.

    The file is `path`, else the one that $EXECUTOR_ADAPTER_CONFIG names, else ./config.yaml where it exists, else there
    are the defaults. Many programs have a config.yaml: one that was not named and has none of our sections is taken for
    another program's and ignored.

    Raises:
        ConfigurationError: The configuration is wrong; one line names the key, the value and what is allowed.
    """
    return read_sources(path).settings()


class ConfigSources:
    """Holds the values of the file, `.env` and the environment before they are checked.

    Args:
        file: the file to read; None: there is none.
        named: whether the file was named by the user, or else found by chance.
        ignored: a config.yaml that was found and taken for another program's.
    """

    def __init__(self, file: Path | None, *, named: bool = True, ignored: Path | None = None) -> None:
        self.file = file
        self.ignored = ignored
        self._named = named
        self.written = {} if file is None else read_yaml(file)
        try:
            self.given = {"environment": EnvSettingsSource(Settings)(), ".env": DotEnvSource(Settings)()}
        except SettingsError as error:
            raise ConfigurationError(f"environment: {one_line(error)}: {one_line(error.__cause__)}") from None

    @property
    def description(self) -> str:
        """Which file is read, for people."""
        if self.ignored is not None:
            return f"no file: the defaults ({self.ignored} is ignored: it has no section of this package)"
        return "no file: the defaults" if self.file is None else str(self.file)

    def settings(self) -> Settings:
        """Check all sources and return the settings that they make together.

        Raises:
            ConfigurationError: A value is wrong; the message describes it in one line.
        """
        _refuse_unknown("environment", os.environ)
        _refuse_unknown(".env", DotEnvSource(Settings).env_vars)
        try:
            settings = Settings.from_sources(self.written)
        except ValidationError as error:
            message = describe(error, str(self.file or "defaults"), self.written, self.given)
            raise ConfigurationError(message + self._hint(error)) from None
        try:
            return settings.relative_to(Path.cwd() if self.file is None else self.file.resolve().parent)
        except FileNotFoundError:  # The working directory is gone, and with it what a relative path could mean.
            return settings

    def _hint(self, error: ValidationError) -> str:
        """Return what to do where the file may belong to another program."""
        if self._named or error.errors()[0]["type"] != "unknown_key":
            return ""
        return f" (if {self.file} is another program's, set {CONFIG_VARIABLE} to the path of yours)"


def read_sources(path: str | Path | None = None) -> ConfigSources:
    """Find and read the sources; see `load_config` for which file that is.

    Raises:
        ConfigurationError: a file cannot be read, or a variable that must be JSON is not.
    """
    named = path or os.environ.get(CONFIG_VARIABLE) or DotEnvSource(Settings).env_vars.get(CONFIG_VARIABLE.lower())
    if named:
        return ConfigSources(Path(named))
    found = Path("config.yaml")
    if not found.is_file():
        return ConfigSources(None)
    if _is_of_another_program(found):
        return ConfigSources(None, ignored=found)
    return ConfigSources(found, named=False)


def _is_of_another_program(file: Path) -> bool:
    """Return whether no top-level key is a section, is spelt like one, or is a key of one in the wrong place."""
    keys = top_level_keys(file)
    if keys is None:
        return False
    fields = Settings.model_fields
    sections = [kind for field in fields.values() if isinstance(kind := field.annotation, type)]
    inner = {key for kind in sections if issubclass(kind, Section) for key in kind.model_fields if "_" in key}
    return not any(key in inner or difflib.get_close_matches(key, fields, n=1, cutoff=MIN_SIMILARITY) for key in keys)


def _refuse_unknown(place: str, variables: Iterable[str]) -> None:
    """Refuse a variable with our prefix and an unknown section: it would have no effect."""
    allowed = sorted(f"{ENV_PREFIX}{field.upper()}" for field in Settings.model_fields)
    for name in variables:
        key = name.upper()
        if key.startswith(ENV_PREFIX) and key not in OTHER_VARIABLES and key.partition("__")[0] not in allowed:
            which = nearest_of(key.partition("__")[0], allowed)
            raise ConfigurationError(f"{place}: {key} is not a key: {which}, and the keys in them")
