"""Signed pickles: a store may hold pickles only if it was asked to, and none is loaded without a valid signature.

A pickle runs code when it is loaded, so whoever can write to the store could run code in the programs that read it. A
signature (HMAC-SHA256) shows that a program with the key of this installation wrote the pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import pickle
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from executor_adapter.exceptions import ConfigurationError, InvalidJobError

MIN_KEY_LENGTH = 16
"""Characters of a key."""

_FORMAT = b"EXA1"
_START = len(_FORMAT) + hashlib.sha256().digest_size
"""Where the pickle begins, after its signature."""


class SignedPickles:
    """Signs pickles with the first of its keys, and loads those that any of them has signed."""

    REFUSAL = "is signed by no key of ours: set store.pickle_key to our key and that of its program: OURS THEIRS"

    def __init__(self, keys: Sequence[str]) -> None:
        if not keys or min(map(len, keys)) < MIN_KEY_LENGTH:
            raise ConfigurationError(
                f"store.pickle_key: a key needs {MIN_KEY_LENGTH} characters or more: `openssl rand -hex 32` makes one"
            )
        self._keys = [key.encode() for key in keys]

    def sign(self, pickled: bytes) -> bytes:
        """Return the pickle with its signature."""
        return _FORMAT + _mac(self._keys[0], pickled) + pickled

    def load(self, signed: bytes) -> Any:
        """Load a pickle whose signature is valid.

        Raises:
            InvalidJobError: it is not signed by one of the keys.
            Exception: whatever loading it raises.
        """
        if not self.is_signed(signed):
            raise InvalidJobError(f"its pickle {self.REFUSAL}")
        return pickle.loads(signed[_START:])

    def is_signed(self, signed: bytes) -> bool:
        """Return whether a pickle is signed by one of the keys, without loading it."""
        mac, pickled = signed[len(_FORMAT) : _START], signed[_START:]
        return signed.startswith(_FORMAT) and any(hmac.compare_digest(mac, _mac(key, pickled)) for key in self._keys)

    def sign_again(self, signed: bytes) -> bytes:
        """Return a pickle that any of the keys has signed, signed with the first one."""
        return self.sign(signed[_START:])


def _mac(key: bytes, pickled: bytes) -> bytes:
    return hmac.digest(key, b"executor-adapter pickle\0" + pickled, "sha256")


def signed_pickles(key: str | None) -> SignedPickles:
    """Return the signer with the given keys, separated by blanks, or else those of this user's key file.

    Raises:
        ConfigurationError: a key is too short, or the file cannot be made or is not its owner's alone.
    """
    return SignedPickles(_keys_of_file(key_file()) if key is None else key.split())


def key_file() -> Path:
    """Return the path of this user's key file: one key in each line, the first signs."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "executor-adapter" / "pickle.key"


def _keys_of_file(path: Path) -> list[str]:
    try:
        if not path.exists():
            _make_key(path)
        with path.open(encoding="ascii", errors="replace") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
                raise ConfigurationError(
                    f"store.pickle_key: {path} must be readable by its owner alone, who must be this user: chmod 600 it"
                )
            return file.read().split()
    except OSError as error:
        raise ConfigurationError(
            f"store.pickle_key: the key file {path} cannot be used: {error.strerror}: set the key in the environment"
        ) from None


def _make_key(path: Path) -> None:
    """Make the file whole or not at all: another program may make or read it now."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)
