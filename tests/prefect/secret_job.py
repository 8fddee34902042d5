"""A job that uses a credential, and says so."""

from __future__ import annotations

import logging

from executor_adapter.config import Credential, redacted


def use(credential: Credential) -> int:
    secret = credential.resolve().get_secret_value()
    logging.getLogger("mine").warning("%s", redacted(f"used {secret} of the {credential}"))
    return len(secret)


def fail(credential: Credential) -> None:
    """Raise an error of its own with the secret in it, from another one."""
    secret = credential.resolve().get_secret_value()
    try:
        raise LookupError(f"no account of {secret}")
    except LookupError as error:
        raise ValueError(f"cannot use {secret}") from error
