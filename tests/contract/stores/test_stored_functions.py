"""What a stored row may run: nothing of its own choice, and no pickle that this installation has not signed."""

from __future__ import annotations

import itertools
import json
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings, StoreSettings, hidden
from executor_adapter.exceptions import ConfigurationError, InvalidJobError
from executor_adapter.job.status import JobStatus
from executor_adapter.persistence.stored_functions import StoredFunctions
from executor_adapter.store import JobRecord, JobStore, SignedPickles, signed_pickles
from executor_adapter.store.pickles import key_file
from tests.contract import functions
from tests.contract.stores.conftest import MakeStored, record_in, wait_for_end

KEY = "k" * 32
OTHER_KEY = "o" * 32


def forged(function: str, *args: Any, **fields: Any) -> JobRecord:
    """Return a row as somebody else could write it: what runs is in its call."""
    call = json.dumps({"function": function, "args": args, "retry_attempts": 0, "pool": "thread"})
    given: dict[str, Any] = {"function": "tests.contract.functions:add", "call": call, "created_at": time.time()}
    return JobRecord(job_id=f"job-{next(_numbers)}", **given | fields)


_numbers = itertools.count(1)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


def evil_pickle(path: Path) -> bytes:
    return pickle.dumps((Evil(path), (), {}))


@pytest.mark.parametrize("reference", ["os:system", "tests.contract.stores.test_stored_functions:os.system"])
def test_a_row_runs_no_function_that_the_program_has_not_chosen(
    store: JobStore, make_stored: MakeStored, tmp_path: Path, caplog: pytest.LogCaptureFixture, reference: str
) -> None:
    """A row that names os:system, also as a module of the program has it, is left in the store; rows behind it run."""
    victim = tmp_path / "ran"
    evil = forged(reference, f"touch {victim}")
    store.enqueue(evil)
    good = forged("tests.contract.functions:add", 1)
    store.enqueue(good)
    executor = make_stored()
    assert [job.job_id for job in executor.recover()] == [good.job_id]
    assert wait_for_end(store, good.job_id).status is JobStatus.COMPLETED
    assert executor.recover() == []
    assert not victim.exists()
    left = record_in(store, evil.job_id)
    assert (left.status, left.host) == (JobStatus.PENDING, None)
    assert left.error_message == (
        f"its function {reference} is not one that stored jobs may run: "
        "if it is yours, add it or its module to store.functions"
    )
    said = [record for record in caplog.records if evil.job_id in record.getMessage()]
    assert [record.levelno for record in said] == [logging.WARNING]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_job_that_was_left_runs_when_it_is_allowed(store: JobStore, make_stored: MakeStored) -> None:
    """A row that one host leaves runs where its function is in store.functions, and keeps no error of the refusal."""
    row = forged("statistics:mean", [1, 2, 6])
    store.enqueue(row)
    assert make_stored().recover() == []
    assert record_in(store, row.job_id).error_code == "CONFIGURATION_ERROR"
    (job,) = make_stored(settings={"functions": "statistics"}).recover()
    done = wait_for_end(store, job.job_id)
    assert (done.status, done.error_code, done.error_message) == (JobStatus.COMPLETED, None, None)


def test_refused_rows_hide_no_others(store: JobStore, make_stored: MakeStored) -> None:
    """More refused rows than one transaction claims do not keep the others from running."""
    rows = [forged("os:system", "exit", created_at=time.time() - 60) for _ in range(120)]
    rows.insert(110, forged("tests.contract.functions:add", 1, created_at=time.time() - 60))
    for row in rows:
        store.enqueue(row)
    assert [job.job_id for job in make_stored().recover()] == [rows[110].job_id]


MINE = "tests.contract.functions:add"


@pytest.mark.parametrize(
    ("named", "submitted", "reference", "allowed"),
    [
        (None, (), MINE, True),
        (None, (), "os:system", False),
        (None, (), "builtins:exec", False),
        (None, (), "pandas:read_pickle", False),
        (None, (), "executor_adapter.worker.process_tree:kill_below", False),
        (None, (), "tests.contract.stores.test_stored_functions:os.system", False),
        (None, (), "tests.contract.stores.test_stored_functions:pickle.loads", False),
        (None, (), "no_such_module:f", True),
        (None, (os.getpid,), "posix:system", False),
        (None, ("os:getpid",), "os:system", False),
        (None, ("os:getpid",), "os:getpid", True),
        (None, ("pandas:concat",), "pandas:concat", True),
        (("tests.contract",), (), MINE, True),
        (("tests.contract.functions",), (), MINE, True),
        ((MINE,), (), MINE, True),
        (("tests.contract.fun",), (), MINE, False),
        (("elsewhere",), (), MINE, False),
        (("elsewhere",), (functions.add,), MINE, True),
        (("os:system",), (), "os:system", True),
        (("*",), (), "os:system", True),
        ((), (), MINE, False),
    ],
)
def test_which_functions_stored_jobs_may_run(
    named: tuple[str, ...] | None, submitted: tuple[Any, ...], reference: str, allowed: bool
) -> None:
    """By default the program's own modules and what it submits; with `store.functions` what is named there."""
    found = StoredFunctions(named, None)
    for function in submitted:
        found.add(function)
    assert (found.refusal(forged(reference)) is None) is allowed


def test_a_module_that_ends_the_program_is_left_to_the_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module of a row that raises anything when it is imported does not keep others from being claimed."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "raises_at_import.py").write_text("raise GeneratorExit")
    found = StoredFunctions(None, None)
    assert found.refusal(forged("raises_at_import:f"), may_import=False) == ""
    assert found.import_unknown()
    assert found.refusal(forged("raises_at_import:f"), may_import=False) is None
    assert not found.import_unknown()


def test_a_refused_function_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of a refused function is not imported, since that would run its code."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "not_yet_imported.py").write_text("def f(): ...")
    assert StoredFunctions(("elsewhere",), None).refusal(forged("not_yet_imported:f")) is not None
    assert "not_yet_imported" not in sys.modules


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_job_of_a_refused_row_can_be_read_but_not_run(make_stored: MakeStored, store: JobStore) -> None:
    """The history shows the job of a refused row, whose function raises instead of running."""
    store.enqueue(row := forged("os:getpid"))
    history = make_stored().history()
    assert history is not None
    job = history._functions.to_job(record_in(store, row.job_id))  # noqa: SLF001
    assert job.job_id == row.job_id
    with pytest.raises(InvalidJobError, match="make a new job"):
        job.function()


# --- pickles ---


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("asked", [False, True])
def test_a_forged_pickle_is_not_loaded(store: JobStore, make_stored: MakeStored, tmp_path: Path, asked: bool) -> None:
    """A pickle without a valid signature is never loaded, whether the store may hold pickles or not."""
    evil = forged(MINE, pickled=evil_pickle(tmp_path / "loaded"))
    store.enqueue(evil)
    store.enqueue(forged(MINE, pickled=SignedPickles([OTHER_KEY]).sign(evil_pickle(tmp_path / "loaded"))))
    executor = make_stored(settings={"pickle_arguments": asked, "pickle_key": KEY})
    assert executor.recover() == []
    record_in(store, evil.job_id).to_job()
    assert not (tmp_path / "loaded").exists()
    left = record_in(store, evil.job_id)
    assert left.status is JobStatus.PENDING
    wanted = "its pickle is signed by no key of ours" if asked else "store.pickle_arguments is false"
    assert wanted in str(left.error_message)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("place", [0, 5, 20, -1])
def test_a_pickle_that_was_changed_in_the_store_is_not_loaded(
    store: JobStore, make_stored: MakeStored, tmp_path: Path, place: int
) -> None:
    """A signed pickle of which one bit was changed in the store, in its signature or behind it, is never loaded."""
    signed = bytearray(SignedPickles([KEY]).sign(evil_pickle(tmp_path / "loaded")))
    signed[place] ^= 1
    store.enqueue(row := forged(MINE, pickled=bytes(signed)))
    executor = make_stored(settings={"pickle_arguments": True, "pickle_key": KEY})
    assert executor.recover() == []
    assert not (tmp_path / "loaded").exists()
    assert "its pickle is signed by no key of ours" in str(record_in(store, row.job_id).error_message)


def add_to_set(values: set[int]) -> int:
    return sum(values)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("key", [f"{KEY} {OTHER_KEY}", f"{OTHER_KEY} {KEY}"])
def test_a_signed_pickle_runs_also_after_the_key_was_changed(
    store: JobStore, make_stored: MakeStored, key: str
) -> None:
    """A pickled job runs where any of the keys has signed it, so keys can be replaced."""
    pickles = SignedPickles([KEY])
    row = forged(MINE, pickled=pickles.sign(pickle.dumps((add_to_set, ({1, 2},), {}))))
    store.enqueue(row)
    (job,) = make_stored(settings={"pickle_arguments": True, "pickle_key": key}).recover()
    assert job.args == ({1, 2},)
    assert wait_for_end(store, row.job_id).status is JobStatus.COMPLETED


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


def test_the_key_is_made_once_for_its_owner_alone(home: Path) -> None:
    """Without a setting, a key is made in the user's configuration directory, with mode 0600, and used from then on."""
    signed = signed_pickles(None).sign(b"pickle")
    assert key_file() == home / "config" / "executor-adapter" / "pickle.key"
    assert key_file().stat().st_mode & 0o777 == 0o600
    assert key_file().parent.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in key_file().parent.iterdir()] == ["pickle.key"]
    assert signed_pickles(None).is_signed(signed)


def test_a_key_file_that_others_can_read_is_refused(home: Path) -> None:
    """A key file with another mode than its owner's alone is refused, with what to do."""
    signed_pickles(None)
    key_file().chmod(0o640)
    with pytest.raises(ConfigurationError, match=r"pickle\.key must be readable by its owner alone.*chmod 600"):
        signed_pickles(None)


def test_a_short_key_is_refused(home: Path) -> None:
    """A key that could be guessed is refused."""
    for key in ("short", f"{KEY} short", " "):
        with pytest.raises(ConfigurationError, match="16 characters or more"):
            signed_pickles(key)


def test_no_key_is_made_where_no_pickles_are_asked_for(home: Path) -> None:
    """A store without pickles needs no key."""
    with JobExecutor(config=Settings(), store=f"sqlite:///{home / 'jobs.db'}") as executor:
        executor.run(Job(function=functions.add, args=(1,)))
    assert not key_file().exists()


def test_the_key_is_not_shown() -> None:
    """The settings hide the key when they are printed, and so does `config show`."""
    settings = StoreSettings(pickle_key=SecretStr(KEY))
    assert KEY not in repr(settings)
    assert hidden("store.pickle_key", KEY) == "(hidden)"
