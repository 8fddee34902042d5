"""Credentials of sources. The configuration says where a secret is, and the process that needs it reads it there.

So no secret is in the configuration, and none in what the configuration becomes a part of: arguments of jobs, pickles,
a store, logs and artifacts.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Self

from pydantic import ConfigDict, Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.config.secrets import BLOCK_NAME, ENV_NAME, remember
from executor_adapter.config.sections import Section
from executor_adapter.exceptions import ConfigurationError

SECRET_BLOCKS = "executor_adapter.prefect.child.secret_blocks"
"""The module's name, not an import, because only `executor_adapter.prefect` may import Prefect."""


class Credential(Section):
    """Says where a secret is: exactly one of `env`, `file` and `secret_block`.

    It holds the place alone, never the secret, so it can be printed, pickled and stored. `resolve` reads the secret.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    env: str | None = Field(default=None, pattern=ENV_NAME)
    """A variable of the environment of the process that runs the job."""
    file: Path | None = None
    """A file on the machine that runs the job, relative to the configuration file."""
    secret_block: str | None = Field(default=None, pattern=BLOCK_NAME)
    """The name of a Secret block on the Prefect server, whose value is a text."""

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if sum(place is not None for place in (self.env, self.file, self.secret_block)) != 1:
            raise PydanticCustomError("place", "must have exactly one of the keys env, file and secret_block")
        return self

    def resolve(self) -> SecretStr:
        """Read the secret. Call this where the secret is used, and pass it no further.

        The value is read again by each call, so a changed secret is used from the next call on. From now on it is
        hidden in the texts and tracebacks of errors of jobs in this process, and by `redacted` in any text.

        Raises:
            ConfigurationError: there is no such variable, file or block, or it is empty.
        """
        if self.env is not None:
            value = os.environ.get(self.env, "")
        elif self.file is not None:
            value = _read_file(self.file)
        else:
            value = str(importlib.import_module(SECRET_BLOCKS).read_secret_block(self.secret_block))
        if not value:
            raise ConfigurationError(f"the credential in the {self} is missing or empty where the job runs: set it")
        remember(value)
        return SecretStr(value)

    def relative_to(self, directory: Path) -> Credential:
        """Return the credential with a relative path made relative to `directory`."""
        return self if self.file is None else self.model_copy(update={"file": directory / self.file})

    def __str__(self) -> str:
        """Describe the place, such as `variable ORDERS_TOKEN`."""
        if self.env is not None:
            return f"variable {self.env}"
        return f"file {self.file}" if self.file is not None else f"Secret block {self.secret_block}"


def _read_file(path: Path) -> str:
    """Return the content without the line break at its end, which editors and `kubectl create secret` add."""
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ConfigurationError(f"the credential in the file {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"the credential in the file {path} is not UTF-8 text: write it as text") from None
