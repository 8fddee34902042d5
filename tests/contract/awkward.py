"""Exceptions that are awkward to look at, and functions that raise them; importable in a worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


class SaysNothing(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class SaysNone(Exception):
    def __str__(self) -> str:
        return None  # type: ignore[return-value]


class ShowsNothing(Exception):
    def __str__(self) -> str:
        return ""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class SaysExit(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class HasNoTime(Exception):
    @property
    def retry_after(self) -> float:
        raise RuntimeError("no time")


class HasNoCode(Exception):
    @property
    def error_code(self) -> str:
        raise RuntimeError("no code")


class AsksForEver(Exception):
    retry_after = 10**400


class AsksInWords(Exception):
    headers = {"retry-after": "\N{SUPERSCRIPT TWO}"}  # noqa: RUF012


class ClosedHeaders:
    def get(self, name: str) -> str:
        raise RuntimeError("closed")


class HasClosedHeaders(Exception):
    headers = ClosedHeaders()


class HasNoAttributes(Exception):
    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class TakesNoAttributes(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise RuntimeError(f"no {name}")


class HasNoClass(Exception):
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")


class HasEndlessCauses(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        return HasEndlessCauses()


class IsItsOwnCause(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        return self


class CannotBePickled(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("no pickle")


class NestsForEver(Exception):
    def __reduce__(self) -> Any:
        return NestsForEver, (NestsForEver(),)


class BecomesText(Exception):
    def __reduce__(self) -> Any:
        return str, ("text",)


class NeedsTwo(Exception):
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
        *(SaysNothing, SaysNone, ShowsNothing, SaysExit, HasNoTime, HasNoCode, AsksForEver, AsksInWords),
        *(HasClosedHeaders, HasNoAttributes, TakesNoAttributes, HasNoClass, HasEndlessCauses, IsItsOwnCause),
        *(CannotBePickled, NestsForEver, BecomesText),
    )
} | {
    "NeedsTwo": lambda: NeedsTwo("one", "two"),
    "after_many": after_many,
    "many": lambda: ExceptionGroup("many", [ValueError(str(number)) for number in range(3000)]),
    "many that say nothing": lambda: ExceptionGroup("many", [SaysNothing(), HasEndlessCauses()]),
    "code": lambda: SystemExit(SaysNothing()),
}


def raise_awkward(kind: str) -> None:
    raise AWKWARD[kind]()


class NeverSaysAll(Exception):
    def __str__(self) -> str:
        while True:
            time.sleep(0.01)


def raise_what_never_says_all() -> None:
    raise NeverSaysAll


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
