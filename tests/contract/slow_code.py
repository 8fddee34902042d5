"""Objects and errors whose code notes where it runs, hangs or fails; workers import this module."""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from typing import Any

import numpy as np

seen: list[tuple[str, str]] = []
"""What was called, and on which thread of this process."""
gate = threading.Event()
"""What a Gated waits for where it is unpickled by its reader."""
OF_WORKER = "module_of_the_worker"
"""A module that is in the worker alone."""


def note(what: str) -> None:
    seen.append((what, threading.current_thread().name))


def threads_of(*names: str) -> list[str]:
    """Return the threads on which these were called, once for each call."""
    return [thread for what, thread in list(seen) if what in names]


class Noting:
    """Notes where it is unpickled and freed."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        note(f"unpickled {self.name}")

    def __del__(self) -> None:
        note(f"freed {self.name}")


class Gated:
    """Waits for the gate where it is unpickled by its reader, and not where its worker checks it."""

    def __init__(self) -> None:
        self.made_in = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        if os.getpid() != self.made_in:
            note("waits")
            gate.wait()


class OnlyThere:
    """Cannot be unpickled in another process than the one that made it."""

    def __init__(self) -> None:
        self.made_in = os.getpid()

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.getpid() != state["made_in"]:
            raise LookupError("it is only there")


class NotingError(Exception):
    """Notes where anything of it is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.held = Noting(name)

    def __reduce__(self) -> Any:
        return NotingError, self.args

    def __str__(self) -> str:
        note("str")
        return "slow"

    def __repr__(self) -> str:
        note("repr")
        return "slow"

    def __eq__(self, other: object) -> bool:
        note("eq")
        return self is other

    __hash__ = Exception.__hash__

    @property
    def error_code(self) -> str:
        note("error_code")
        return "SLOW_ERROR"

    @property
    def retry_after(self) -> float:
        note("retry_after")
        return 0.0

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        note("class")
        return NotingError


class HangingError(Exception):
    """Never returns from one of its methods."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.method = method

    def _hang_in(self, method: str) -> None:
        while self.method == method:
            time.sleep(0.01)

    def __str__(self) -> str:
        self._hang_in("__str__")
        return self.method

    def __repr__(self) -> str:
        self._hang_in("__repr__")
        return self.method

    def __reduce__(self) -> Any:
        self._hang_in("__reduce__")
        return HangingError, self.args, vars(self)

    def __setstate__(self, state: Any) -> None:
        self._hang_in("__setstate__")

    @property
    def error_code(self) -> str:
        self._hang_in("error_code")
        return "HANGING"


def return_noting(name: str) -> Noting:
    return Noting(name)


def raise_noting(name: str) -> None:
    raise NotingError(name)


def return_gated() -> Gated:
    return Gated()


def return_only_there() -> OnlyThere:
    return OnlyThere()


def return_only_there_for(_: int) -> OnlyThere:
    return OnlyThere()


def raise_hanging(method: str) -> None:
    raise HangingError(method)


def raise_of_worker() -> None:
    """Raise an exception of a module that no other process can import."""
    module = types.ModuleType(OF_WORKER)
    base = type("BusyError", (Exception,), {"__module__": OF_WORKER})
    vars(module).update(BusyError=base, PageError=type("PageError", (base,), {"__module__": OF_WORKER}))
    sys.modules[OF_WORKER] = module
    raise vars(module)["PageError"]("page 13")


def large(number: int) -> Any:
    return np.full(1 << 17, number)


def accept(_: Any) -> None:
    pass
