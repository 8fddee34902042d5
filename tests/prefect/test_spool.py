"""The spool: no final state is lost to another process, to a broken line or to a full disk."""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from executor_adapter.prefect.mirror.own_files import OwnFiles
from executor_adapter.prefect.mirror.spool import MAX_FILE_EVENTS, Spool
from tests.prefect.sample_events import COMPLETED, PENDING, event


def test_a_file_is_not_found_before_its_writer_has_locked_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is invisible until its writer has locked it, or another process would remove it as empty."""
    flock, found = fcntl.flock, []

    def look_first(file: Any, how: int) -> None:
        if how == fcntl.LOCK_EX:
            found.extend(claimed.events() for claimed in Spool("server", tmp_path).claim())
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", look_first)
    Spool("server", tmp_path).keep([event(COMPLETED)])
    assert found == []
    (file,) = Spool("server", tmp_path).claim()
    assert len(file.events()) == 1
    file.release()


@pytest.mark.parametrize("line", ["0", "null", "[]", '"text"', "{}", '{"resource": 1}', '{"id": "half', "\xff"])
def test_a_line_that_is_not_a_state_is_skipped(tmp_path: Path, line: str, caplog: pytest.LogCaptureFixture) -> None:
    """Lines that are not states are skipped with one warning that counts them."""
    Spool("server", tmp_path).keep([event(COMPLETED)])
    (path,) = tmp_path.iterdir()
    path.write_bytes(line.encode("latin-1") + b"\n" + path.read_bytes())
    (file,) = Spool("server", tmp_path).claim()
    (left,) = file.events()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "1 of 2 lines" in caplog.text
    left.spool_file.mark_recorded()
    assert list(tmp_path.iterdir()) == []


def test_on_a_full_disk_the_kept_and_the_missing_jobs_are_returned(tmp_path: Path) -> None:
    """If the disk becomes full after the first file, the kept and the missing jobs are returned."""
    small, large = event(COMPLETED).body, event(COMPLETED).body + b" " * 10_000
    events = [
        dataclasses.replace(event(COMPLETED), job_id=f"job-{number}", body=small if number < MAX_FILE_EVENTS else large)
        for number in range(3 * MAX_FILE_EVENTS)
    ]
    with _files_of_at_most(1_000_000):
        kept, missing = Spool("server", tmp_path).keep(events)
    assert kept == tuple(f"job-{number}" for number in range(MAX_FILE_EVENTS))
    assert (*kept, *missing) == tuple(each.job_id for each in events)


def test_events_that_were_read_from_a_file_stay_in_it(tmp_path: Path) -> None:
    """Events that were read from a file stay in it and are not written a second time."""
    spool = Spool("server", tmp_path)
    spool.keep([event(COMPLETED)])
    (file,) = spool.claim()
    own = dataclasses.replace(event(COMPLETED), job_id="own")
    assert spool.keep([*file.events(), own]) == (("own",), ())
    assert [len(claimed.events()) for claimed in _claimed(spool)] == [1, 1]


def test_the_files_of_a_living_mirror_are_left_to_it(tmp_path: Path) -> None:
    """Nobody claims the files of a mirror that is alive; once it is closed, or dead, they are like all others."""
    for ends in (OwnFiles.close, lambda own: own.lock.close()):  # The end of a process closes the lock.
        own = OwnFiles(Spool("server", tmp_path))
        final = dataclasses.replace(event(COMPLETED), job_id="own")
        assert own.store([event(PENDING), final])
        assert own.back_up([kept := event(COMPLETED)])
        assert list(Spool("server", tmp_path).claim()) == []
        assert list(own.job_ids()) == ["own"]
        ends(own)
        assert sorted(len(file.events()) for file in _claimed(Spool("server", tmp_path))) == [1, 2]
        assert kept.backup is not None
        for file in Spool("server", tmp_path).claim():
            file.events()
            file.mark_recorded()
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_changed_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Final states that are missing when their mirror reads its file again are counted and logged."""
    own = OwnFiles(Spool("server", tmp_path))
    own.store([event(COMPLETED), event(COMPLETED), event(COMPLETED)])
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + b"cut off")
    (left,) = own.take()
    assert (own.lost, bool(own)) == (2, False)
    assert "has lost 2 final states" in caplog.text
    assert left.backup is not None
    left.backup.mark_recorded()
    own.close()
    assert list(tmp_path.iterdir()) == []


def _claimed(spool: Spool) -> Iterator[Any]:
    for file in spool.claim():
        yield file
        file.release()


@contextmanager
def _files_of_at_most(size: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
