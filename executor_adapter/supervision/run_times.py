"""Measures how long functions take, so that short ones can be queued behind one another."""

from __future__ import annotations

import types
import weakref

from executor_adapter.job import function_key

SHORT_RUN_SECONDS = 0.002
"""Functions that take less than this on average may have other jobs queued behind them in their worker."""

MAX_FUNCTIONS = 1024
"""Functions whose run time is remembered."""

_UNKNOWN = float("inf")
_NEW_SHARE = 0.3


class RunTime:
    """The moving average of how long one function takes."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = _UNKNOWN

    def learn(self, took: float) -> None:
        """Take the seconds of one more run into account."""
        self.seconds = took if self.seconds == _UNKNOWN else self.seconds + _NEW_SHARE * (took - self.seconds)


class RunTimes:
    """The run time of each function. A function that has never run does not count as short."""

    def __init__(self) -> None:
        self._by_function: dict[object, RunTime] = {}

    def of(self, function: object) -> RunTime:
        """Return the run time of `function`, a new one if it has not run yet."""
        # `function_key` inlined for the common case: calling it would take as long as all the rest.
        key = weakref.ref(function) if type(function) is types.FunctionType else function_key(function)
        known = self._by_function.get(key)
        if known is None:
            if len(self._by_function) >= MAX_FUNCTIONS:
                self._by_function.clear()  # So many functions are made dynamically and never called again.
            known = self._by_function[key] = RunTime()
        return known
