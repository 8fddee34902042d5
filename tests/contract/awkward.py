"""Exceptions that fail when they are read or pickled, and functions that raise them; importable in a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


class SaysNothingError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class SaysNoneError(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


class ShowsNothingError(Exception):
    def __str__(self) -> str:
        return ""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class SaysExitError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class HasNoTimeError(Exception):
    @property
    def retry_after(self) -> float:
        raise RuntimeError("no time")


class HasNoCodeError(Exception):
    @property
    def error_code(self) -> str:
        raise RuntimeError("no code")


class AsksForEverError(Exception):
    retry_after = 10**400


class AsksInWordsError(Exception):
    headers = {"retry-after": "\N{SUPERSCRIPT TWO}"}  # noqa: RUF012


class ClosedHeaders:
    def get(self, name: str) -> str:
        raise RuntimeError("closed")


class HasClosedHeadersError(Exception):
    headers = ClosedHeaders()


class HasNoAttributesError(Exception):
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class TakesNoAttributesError(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError(f"no {name}")


class HasNoClassError(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class HasEndlessCausesError(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        return HasEndlessCausesError()


class IsItsOwnCauseError(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        return self


class CannotBePickledError(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class NestsForEverError(Exception):
    def __reduce__(self) -> Any:
        return NestsForEverError, (NestsForEverError(),)


class BecomesTextError(Exception):
    def __reduce__(self) -> Any:
        return str, ("text",)


class NeedsTwoError(Exception):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one)


def after_many() -> BaseException:
    error: BaseException = ValueError("first")
    for number in range(3000):
        later = ValueError(f"{number}")
        later.__cause__ = error
        error = later
    return error


AWKWARD: dict[str, Callable[[], BaseException]] = {
    kind.__name__: kind
    for kind in (
        *(SaysNothingError, SaysNoneError, ShowsNothingError, SaysExitError, HasNoTimeError, HasNoCodeError),
        *(AsksForEverError, AsksInWordsError, HasClosedHeadersError, HasNoAttributesError, TakesNoAttributesError),
        *(HasNoClassError, HasEndlessCausesError, IsItsOwnCauseError),
        *(CannotBePickledError, NestsForEverError, BecomesTextError),
    )
} | {
    "NeedsTwoError": lambda: NeedsTwoError("one", "two"),
    "after_many": after_many,
    "many": lambda: ExceptionGroup("many", [ValueError(str(number)) for number in range(3000)]),
    "many that say nothing": lambda: ExceptionGroup("many", [SaysNothingError(), HasEndlessCausesError()]),
    "code": lambda: SystemExit(SaysNothingError()),
}


def raise_awkward(kind: str) -> None:
    raise AWKWARD[kind]()


class NeverSaysAllError(Exception):
    def __str__(self) -> str:
        while True:
            time.sleep(0.01)


def raise_what_never_says_all() -> None:
    raise NeverSaysAllError


class Own(BaseException):
    pass


NO_EXCEPTIONS: dict[str, BaseException] = {
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "CancelledError": asyncio.CancelledError(),
    "StopIteration": StopIteration("done"),
    "Own": Own("mine"),
}


def raise_no_exception(kind: str) -> None:
    raise NO_EXCEPTIONS[kind]


async def exit_in_a_task_of_its_own() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    await asyncio.create_task(leave())
