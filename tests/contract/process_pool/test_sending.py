"""Tests what is sent to a worker and back: functions, arguments, results, exceptions."""

from __future__ import annotations

import functools
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cloudpickle
import pytest

from executor_adapter.exceptions import (
    InvalidJobError,
    JobError,
    JobSerializationError,
)
from executor_adapter.pools.base import Assignment
from executor_adapter.pools.transport.envelope import Ending
from executor_adapter.worker import values, wire
from executor_adapter.worker.call import CallRunner, ReceivedCall
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness, harness, open_descriptors

# --- functions and values ---


def make_closure(base: int) -> Callable[[int], int]:
    return lambda value: base + value


class Adder:
    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, value: int) -> int:
        return self.base + value

    def __call__(self, value: int) -> int:
        return self.base + value


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda value: value + 1, id="lambda"),
        pytest.param(make_closure(1), id="closure"),
        pytest.param(functools.partial(functions.add, 1), id="partial"),
        pytest.param(functools.partial(make_closure(0), 3), id="partial of a closure"),
        pytest.param(Adder(1).add, id="bound method"),
        pytest.param(Adder(1), id="callable object"),
        pytest.param((1).__add__, id="method of a builtin"),
    ],
)
def test_any_callable_can_be_sent(pool: Harness, function: Any) -> None:
    """Lambdas, closures, partials, methods and callable objects run in a worker."""
    args = () if isinstance(function, functools.partial) and function.args == (3,) else (2,)
    assert pool.value(pool.submit(function, *args)) == 3


def test_a_reference_can_be_sent(pool: Harness) -> None:
    """A function given as "module:qualname" runs in a worker."""
    assert pool.value(pool.submit("operator:add", 1, 2)) == 3


@pytest.mark.parametrize("reference", ["no_such_module:f", "operator:no_such_function", "sys:path"])
def test_a_reference_to_nothing_is_refused(pool: Harness, reference: str) -> None:
    """A reference to a missing module or attribute, or to a non-callable, is refused at submit."""
    with pytest.raises(InvalidJobError, match=reference):
        pool.submit(reference)


@pytest.mark.parametrize("name", ["__prefect_loader_123__", "flow_of_a_file", "os.path.of_nobody"])
def test_a_module_that_a_child_cannot_import_is_sent_by_value(
    pool: Harness, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Functions and classes of such a module run in a worker, and its classes are the same when they return.

    Afterwards cloudpickle treats the module as before, for others that use it.
    """
    module = type(sys)(name)
    monkeypatch.setitem(sys.modules, name, module)
    source = (
        "import dataclasses\n"
        "FACTOR = 3\n"
        "@dataclasses.dataclass\n"
        "class Row:\n    value: int\n"
        "def times(row):\n    return Row(row.value * FACTOR)\n"
        "def main(row):\n    return times(row)\n"
    )
    exec(source, vars(module))
    result = pool.value(pool.submit(module.main, module.Row(2)))
    assert type(result) is module.Row
    assert result.value == 6
    module.FACTOR = 5
    assert pool.value(pool.submit(module.main, module.Row(2))).value == 10
    assert name not in cloudpickle.list_registry_pickle_by_value()


def test_a_method_of_an_object_that_changes_is_sent_anew(pool: Harness) -> None:
    """A built-in method finds in a worker what its object holds at the submit, also where a function captures it."""
    table: dict[str, int] = {}
    find = table.get
    look = make_lookup(find)
    assert pool.value(pool.submit(find, "a")) is None
    assert pool.value(pool.submit(look)) is None
    table["a"] = 1
    assert pool.value(pool.submit(find, "a")) == 1
    assert pool.value(pool.submit(look)) == 1


def make_lookup(find: Callable[[str], int | None]) -> Callable[[], int | None]:
    return lambda: find("a")


@pytest.mark.parametrize("draw", [random.random, random.randbytes], ids=["builtin", "method"])
def test_a_method_that_a_library_holds_is_sent_by_reference(pool: Harness, draw: Callable[..., object]) -> None:
    """`from random import random` in a script gives each job a number of its own, not one from a copy of the state."""
    args = () if draw is random.random else (8,)
    functions = (draw, draw, make_captured(draw), make_captured(draw))
    drawn = [pool.value(pool.submit(function, *args)) for function in functions]
    assert len(set(drawn)) == len(drawn)


def test_a_method_that_a_module_of_the_program_holds_is_sent_with_its_object(
    pool: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker finds the object as the program has made it, not as the module makes it."""
    held = Adder(1)
    monkeypatch.setattr(sys.modules[__name__], "add", held.add, raising=False)
    held.base = 5
    assert pool.value(pool.submit(held.add, 1)) == 6


def make_captured(draw: Callable[..., object]) -> Callable[..., object]:
    return lambda *args: draw(*args)


def test_a_module_hidden_by_another_file_is_sent_by_value(
    pool: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module whose name leads to another file on sys.path is sent by value."""
    (tmp_path / "hidden_flow.py").write_text("def answer():\n    return 'the other'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = type(sys)("hidden_flow")
    module.__file__ = str(tmp_path / "elsewhere" / "hidden_flow.py")
    monkeypatch.setitem(sys.modules, "hidden_flow", module)
    exec("def answer():\n    return 'this one'\n", vars(module))
    assert pool.value(pool.submit(module.answer)) == "this one"


def test_main_is_sent_by_value(tmp_path: Path) -> None:
    """Functions and classes of `__main__` run in a worker, and the program is not imported again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import dataclasses\n"
        "from tests.contract.process_pool.harness import harness\n"
        "@dataclasses.dataclass\n"
        "class Row:\n    value: int\n"
        "def helper(row): return Row(row.value + 1)\n"
        "def main(row): return helper(row)\n"
        "if __name__ == '__main__':\n"
        "    with harness() as pool:\n"
        "        result = pool.value(pool.submit(main, Row(1)))\n"
        "        assert type(result) is Row\n"
        "        print(result)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert (done.stdout, done.stderr) == ("Row(value=2)\n", "")


def test_an_argument_that_cannot_be_pickled_is_refused_by_name(pool: Harness) -> None:
    """The error of an argument that cannot be pickled names the argument and says what to do."""
    with pytest.raises(JobSerializationError, match=r"argument 2 \(a lock\).*pass something that describes it"):
        pool.submit(functions.accept, 1, threading.Lock())
    with pytest.raises(JobSerializationError, match="argument 'handle'"):
        pool.submit(functions.accept, kwargs={"handle": threading.Lock()})


def test_metadata_that_nests_too_deep_is_refused(pool: Harness) -> None:
    """Metadata that is too deep to be pickled, or to be shown, is refused in words."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(JobSerializationError, match=r"the metadata of job .* cannot be pickled: .*: use plain values"):
        pool.submit(functions.accept, 1, metadata={"a": deep})


def test_a_function_that_cannot_be_pickled_is_refused(pool: Harness) -> None:
    """The error of a function that cannot be pickled says what to do."""
    lock = threading.Lock()
    with pytest.raises(JobSerializationError, match="leave out what it captures"):
        pool.submit(lambda: lock)


def test_large_values_are_sent_both_ways_and_freed(pool: Harness) -> None:
    """Large values arrive unchanged in both directions, and leave no descriptor open."""
    numpy = pytest.importorskip("numpy")
    pandas = pytest.importorskip("pandas")
    pool.value(pool.submit(functions.pid))
    before = open_descriptors()
    table = pandas.DataFrame({"a": numpy.arange(500_000), "b": numpy.random.random(500_000)})
    back = pool.value(pool.submit(functions.echo, table))
    pandas.testing.assert_frame_equal(back, table)
    assert pool.value(pool.submit(functions.large_bytes, 3 << 20)) == bytes(3 << 20)
    assert pool.value(pool.submit(functions.echo, [b"x" * (1 << 20)] * 3)) == [b"x" * (1 << 20)] * 3
    changed = pool.value(pool.submit(functions.overwrite, numpy.zeros(300_000)))
    changed += 1
    assert changed.sum() == 600_000
    del back, changed
    pool.endings.clear()
    pool.starts.clear()
    assert open_descriptors() == before


def test_an_argument_is_the_same_in_every_attempt(pool: Harness) -> None:
    """A function that changes a large argument does not change it for the next attempt."""
    numpy = pytest.importorskip("numpy")
    first = pool.submit(functions.overwrite, numpy.zeros(300_000))
    assert pool.value(first).sum() == 300_000
    again = Assignment(first.job, 2, first.payload)
    pool.pending.append(again)
    assert pool.value(again).sum() == 300_000


# --- exceptions ---


def test_an_exception_arrives_with_its_traceback(pool: Harness) -> None:
    """An exception arrives as itself, with the function's traceback as its cause."""
    assignment = pool.submit(functions.fail)
    error = pool.error(assignment)
    assert pool.ending(assignment) is Ending.RAISED
    assert type(error) is LookupError
    assert "process_pool/functions.py" in str(error.__cause__)
    assert "worker/call.py" not in str(error.__cause__)


def test_an_exception_that_cannot_be_pickled_keeps_its_message_and_code(pool: Harness) -> None:
    """An exception that cannot be sent becomes a JobError with its message and error code."""
    error = pool.error(pool.submit(functions.raise_unloadable))
    assert type(error) is JobError
    assert str(error) == "UnloadableError: hold on"
    assert error.error_code == "RATE_LIMITED"


def test_sys_exit_is_the_job_s_error_and_the_worker_stays() -> None:
    """`sys.exit` in a function is the job's error, and the worker runs the next job."""
    with harness(1) as pool:
        pool.warm_up(2)
        first = pool.submit(functions.exit_in_python)
        assert str(pool.error(first)) == "the function called sys.exit(5)"
        assert pool.ending(first) is Ending.RAISED
        assert pool.value(pool.submit(functions.pid)) == first.pid


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="a mapping needs no descriptor: nothing is read")
def test_a_value_that_the_system_reads_in_pieces_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value larger than one read of the system arrives whole; here a read gives 1,000 bytes."""
    read = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: read(fd, [buffers[0][:1000]], at))
    monkeypatch.setattr(values, "_mappings", values.MAX_OPEN_FILES)  # the limit is reached
    value = os.urandom(values.MIN_MEMORY_FILE_BYTES)
    body, file = values.dump(value, values.checked_dumps)
    assert file is not None
    assert values.MemoryFile(os.dup(file.fd), body).load() == value


def test_large_arguments_are_closed_where_the_function_cannot_be_loaded() -> None:
    """The memory file of arguments is closed though the function, which comes first, cannot be loaded."""
    sizes, file = values.dump(bytes(values.MIN_MEMORY_FILE_BYTES), values.checked_dumps)
    assert file is not None
    fd = os.dup(file.fd)
    received = ReceivedCall(wire.IN_FILE, 1, 1, 7, 0.0, wire.CALL_SIZES.pack(0, 0, len(sizes)) + sizes, fd)
    kind, *_ = CallRunner(received, {7: b"Rno_such_module:function"}, Mock()).run()
    assert kind == wire.UNSENDABLE
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("mapped", [True, False])
def test_a_value_whose_file_was_cut_off_is_refused(monkeypatch: pytest.MonkeyPatch, mapped: bool) -> None:
    """A memory file that is shorter than its value is refused."""
    if not mapped:
        monkeypatch.setattr(values, "_mappings", values.MAX_OPEN_FILES)
    body, file = values.dump(os.urandom(values.MIN_MEMORY_FILE_BYTES), values.checked_dumps)
    assert file is not None
    os.ftruncate(file.fd, values.MIN_MEMORY_FILE_BYTES // 2)
    with pytest.raises(ValueError, match=r"size|shorter"):
        values.MemoryFile(os.dup(file.fd), body).load()
