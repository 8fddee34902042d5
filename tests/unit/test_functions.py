"""Tests of a job's function: imported by its reference, checked against its arguments, and not kept alive."""

from __future__ import annotations

import gc
import inspect
import itertools
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.exceptions import InvalidJobError
from executor_adapter.job.functions import check_arguments, is_generator_function, resolve
from executor_adapter.supervision.limits import NEVER
from executor_adapter.supervision.supervisor import RunTimes


class Argument:
    """Stands for a large value."""


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module with the given source and returns its name."""
    numbers = itertools.count()

    def write(source: str) -> str:
        name = f"written_{next(numbers)}_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_a_function_of_the_main_module_may_be_defined_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator function that a notebook replaces by a plain one is refused no more."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "rows", lambda: (yield), raising=False)
    assert is_generator_function("__main__:rows")
    monkeypatch.setattr(main, "rows", list)
    assert not is_generator_function("__main__:rows")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise RuntimeError('no driver')", "cannot be imported: RuntimeError: no driver"),
        ("def work(:", "cannot be imported: SyntaxError: "),
        ("wrok", "cannot be imported: NameError: name 'wrok' is not defined"),
        ("import sys; sys.exit('a script')", "cannot be imported: SystemExit: a script"),
        ("import no_such_module", "cannot be imported: No module named 'no_such_module'"),
        ("", "cannot be imported: module '.*' has no attribute 'work'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_refused(
    write_module: Callable[[str], str], source: str, message: str
) -> None:
    """A module that fails at import is rejected; the message says how it failed."""
    with pytest.raises(InvalidJobError, match=message):
        resolve(f"{write_module(source)}:work")


@pytest.mark.parametrize("reference", ["..x:y", ".:y", "a..b:y"])
def test_a_reference_that_names_no_module_is_refused(reference: str) -> None:
    """A reference without a valid module name is rejected."""
    with pytest.raises(InvalidJobError, match="cannot be imported"):
        resolve(reference)


def test_ctrl_c_passes_through_an_import(write_module: Callable[[str], str]) -> None:
    """KeyboardInterrupt during the import of a function is not turned into a rejection."""
    with pytest.raises(KeyboardInterrupt):
        resolve(f"{write_module('raise KeyboardInterrupt')}:work")


def nothing() -> None: ...
def one(a: int) -> None: ...
def optional(a: int, b: int = 1) -> None: ...
def by_position(a: int, b: int = 1, /, c: int = 2) -> None: ...
def by_name(a: int, *, b: int, c: int = 2) -> None: ...
def any_number(a: int, *rest: int, b: int = 1) -> None: ...
def any_name(a: int, /, b: int = 1, **rest: int) -> None: ...
def anything(*args: Any, **kwargs: Any) -> None: ...


FUNCTIONS = (nothing, one, optional, by_position, by_name, any_number, any_name, anything)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_arguments_are_accepted_as_a_call_accepts_them(function: Callable[..., None]) -> None:
    """Arguments are accepted exactly where a call would be, except for functions with **kwargs."""
    names = [chosen for size in range(5) for chosen in itertools.combinations("abcd", size)]
    for given, named in itertools.product(range(5), names):
        args, kwargs = (0,) * given, dict.fromkeys(named, 0)
        try:
            function(*args, **kwargs)
        except TypeError:
            if function is not any_name:
                with pytest.raises(InvalidJobError, match="cannot be called with the args and kwargs of the job: "):
                    check_arguments(function, args, kwargs)
        else:
            check_arguments(function, args, kwargs)


def test_a_decorated_function_is_checked_as_it_is_called() -> None:
    """Arguments are checked against the decorator's own signature, not against the one that it shows."""

    def decorated(*args: int) -> None: ...

    decorated.__wrapped__ = one  # type: ignore[attr-defined]
    decorated.__signature__ = inspect.signature(one)  # type: ignore[attr-defined]
    check_arguments(decorated, (1, 2, 3), {})
    with pytest.raises(InvalidJobError, match="unexpected keyword argument 'a'"):
        check_arguments(decorated, (), {"a": 1})


def test_run_times_are_kept_by_function() -> None:
    """Run times are kept for each function, and for each reference by its text."""
    times = RunTimes()
    first, second = (lambda: 1 for _ in range(2))
    times.of(first).learn(0.5)
    assert (times.of(first).seconds, times.of(second).seconds) == (0.5, NEVER)
    times.of("module:name").learn(0.25)
    assert times.of("".join(("module:", "name"))).seconds == 0.25


def closure_over(argument: Argument) -> Any:
    return lambda: argument


class Method:
    def __init__(self, argument: Argument) -> None:
        self.argument = argument

    def method(self) -> None: ...


def callable_object_with(argument: Argument) -> Any:
    class Called:
        def __call__(self) -> Argument:
            return argument

    return Called()


@pytest.mark.parametrize(
    "make",
    [closure_over, lambda argument: Method(argument).method, lambda argument: [argument].append, callable_object_with],
)
def test_run_times_keep_no_function_alive(make: Callable[[Argument], Any]) -> None:
    """Keeping the run time of a function does not keep the function or its values alive."""
    times = RunTimes()
    references = []
    for _ in range(50):
        argument = Argument()
        references.append(weakref.ref(argument))
        times.of(make(argument)).learn(0.1)
    del argument
    gc.collect()
    assert [reference() for reference in references] == [None] * 50
