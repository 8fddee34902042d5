"""A landing holds the bytes as received, is complete or continued, and is read again without asking the source."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy, current_job
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import locked, writing
from executor_adapter.pipeline.sources.landing import (
    RESUME_WITHIN,
    Landing,
    Window,
    find_landing,
    read_landing,
    receiving,
)
from tests.waiting import PATIENCE

MONTH = Window(name="2013-01", since="2013-01-01", until="2013-02-01")


def receive(root: Path, pages: list[bytes], *, fingerprint: str = "f", fail_after: int | None = None) -> list[int]:
    """Land the pages as a source does; return the numbers of those that it was asked for."""
    asked = []
    with receiving(root, "shop", "orders", MONTH, fingerprint=fingerprint) as receiver:
        for number in range(len(receiver.files), len(pages)):
            if number == fail_after:
                raise ConnectionError("cut")
            asked.append(number)
            receiver.add(
                ".json", [pages[number]], origin=f"https://shop/orders?page={number}", inspect=lambda _: (1, {})
            )
    return asked


def landing(root: Path, fingerprint: str | None = None) -> Landing:
    found = find_landing(root, "shop", "orders", MONTH, fingerprint)
    assert found is not None
    return found


def age(root: Path, seconds: float) -> None:
    """Move what is in the lake into the past."""
    then = time.time() - seconds
    for path in root.rglob("*"):
        os.utime(path, (then, then))


def test_the_bytes_are_kept_as_they_were_received(tmp_path: Path) -> None:
    """Each page is one file with its own bytes, and the manifest says where, when, how many and which."""
    receive(tmp_path, [b"[1]", b"\xff\x00"])
    found = landing(tmp_path)
    assert [found.path_of(file).read_bytes() for file in found.files] == [b"[1]", b"\xff\x00"]
    first = found.files[0]
    assert (first.name, first.size, first.rows) == ("00001.json", 3, 1)
    assert first.origin == "https://shop/orders?page=0"
    assert first.checksum == "080a9ed428559ef602668b4c00f114f1a11c3f6b02a435f0bdc154578e4d7f22"
    assert found.manifest.window == MONTH
    assert found.manifest.started_at <= first.received_at
    assert read_landing(found.folder) == found


def test_the_same_bytes_have_the_same_content(tmp_path: Path) -> None:
    """Two landings of the same bytes differ in time and folder, and not in what identifies their content."""
    contents = []
    for pages in ([b"1", b"2"], [b"1", b"2"], [b"1", b"3"]):
        receive(tmp_path, pages)
        contents.append(landing(tmp_path).manifest.content)
    assert contents[0] == contents[1] != contents[2]
    assert len(list(tmp_path.glob("landing/shop/orders/2013-01/*"))) == 3


def test_an_interrupted_landing_is_not_found_and_is_continued(tmp_path: Path) -> None:
    """After an error the whole pages stay, no landing is found, and the next run asks for the rest alone."""
    with pytest.raises(ConnectionError):
        receive(tmp_path, [b"1", b"2", b"3"], fail_after=2)
    assert find_landing(tmp_path, "shop", "orders", MONTH) is None
    assert receive(tmp_path, [b"1", b"2", b"3"]) == [2]
    assert len(landing(tmp_path).files) == 3


INTERRUPTED = (
    '{"name": "00001.json", "origin": "https://shop/orders?page=0", "received_at": "2026-11-30T22:18:40.080129+00:00", '
    '"size": 1, "checksum": "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b", "rows": 1, '
    '"details": {}}\n'
)


def test_a_landing_that_another_release_left_is_continued(tmp_path: Path) -> None:
    """An update does not ask a source again for what is there: the names and the form of the files stay."""
    left = tmp_path / "landing/shop/orders/2013-01/20261130T221840.077720Z-235d824e"
    left.mkdir(parents=True)
    (left / "00001.json").write_bytes(b"1")
    (left / "files.ndjson").write_text(INTERRUPTED)
    assert receive(tmp_path, [b"1", b"2"]) == [1]
    assert landing(tmp_path).folder == left


def test_an_old_or_different_landing_is_not_continued(tmp_path: Path) -> None:
    """A landing of other settings, or one that was interrupted long ago, is started anew."""
    with pytest.raises(ConnectionError):
        receive(tmp_path, [b"1", b"2"], fail_after=1)
    assert receive(tmp_path, [b"1", b"2"], fingerprint="other") == [0, 1]
    age(tmp_path, RESUME_WITHIN + 1)
    assert receive(tmp_path, [b"1", b"2"]) == [0, 1]
    assert landing(tmp_path, "other").manifest.fingerprint == "other"


def test_a_file_that_changed_on_the_disk_is_received_again(tmp_path: Path) -> None:
    """A page that is no longer as long as it was received is asked for again, with all after it."""
    with pytest.raises(ConnectionError):
        receive(tmp_path, [b"1", b"22", b"3", b"4"], fail_after=3)
    next(tmp_path.rglob("00002.json")).write_bytes(b"2")
    assert receive(tmp_path, [b"1", b"22", b"3", b"4"]) == [1, 2, 3]


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    """A full disk leaves a part of a line in the journal; the pages before it stay, also after another interruption."""
    pages = [b"1", b"2", b"3"]
    for fail_after in (1, 2):
        with pytest.raises(ConnectionError):
            receive(tmp_path, pages, fail_after=fail_after)
        (journal,) = tmp_path.rglob("files.ndjson")
        with journal.open("ab") as file:
            file.write(b'{"name": "0000')
    assert receive(tmp_path, pages) == [1, 2]


def test_a_source_can_start_anew(tmp_path: Path) -> None:
    """A source whose old pages are of no use forgets them, and their files are gone."""
    with pytest.raises(ConnectionError):
        receive(tmp_path, [b"1", b"2"], fail_after=1)
    with receiving(tmp_path, "shop", "orders", MONTH, fingerprint="f") as receiver:
        assert receiver.files
        receiver.restart()
        receiver.add(".csv", [b"new"], origin="x")
    assert [file.name for file in landing(tmp_path).files] == ["00001.csv"]
    assert [path.suffix for path in tmp_path.rglob("0*")] == [".csv"]


def _fail_once(root: Path) -> list[int]:
    if current_job().attempt == 1:
        return receive(root, [b"1", b"2", b"3"], fail_after=2)
    age(root, RESUME_WITHIN + 1)
    return receive(root, [b"1", b"2", b"3"])


def test_a_retry_continues_its_own_landing(tmp_path: Path) -> None:
    """The next attempt of a job finds its landing through the checkpoint, however long it has waited."""
    policy = RetryPolicy(retry_attempts=1, retry_delay=0)
    with JobExecutor(1) as executor:
        assert executor.run(Job(function=_fail_once, args=(tmp_path,), pool="thread", retry=policy)) == [2]
    assert len(landing(tmp_path).files) == 3


def test_a_landing_that_is_continued_was_started_before_its_first_file(tmp_path: Path) -> None:
    """What came to its first pages since then was not received, so that its window is no more final than they are."""
    with pytest.raises(ConnectionError):
        receive(tmp_path, [b"1", b"2"], fail_after=1)
    receive(tmp_path, [b"1", b"2"])
    assert landing(tmp_path).manifest.started_at <= landing(tmp_path).files[0].received_at


def test_two_jobs_do_not_write_the_same_landing(tmp_path: Path) -> None:
    """A landing that somebody is receiving is left alone; the second job has one of its own."""
    with receiving(tmp_path, "shop", "orders", MONTH, fingerprint="f") as first:
        first.add(".json", [b"1"], origin="x")
        assert receive(tmp_path, [b"1", b"2"]) == [0, 1]
        first.add(".json", [b"2"], origin="x")
    assert len(list(tmp_path.rglob("manifest.json"))) == 2


def test_nothing_half_written_is_left_of_a_page(tmp_path: Path) -> None:
    """A page whose bytes break off leaves no file, and no other one."""

    def cut() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("cut")

    with pytest.raises(ConnectionError), receiving(tmp_path, "shop", "orders", MONTH, fingerprint="f") as receiver:
        receiver.add(".json", cut(), origin="x")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


KILLED = """
import os, signal, sys
from pathlib import Path
from executor_adapter.pipeline.sources.landing import receiving
from executor_adapter.pipeline.sources.landing import Window

def page():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)

window = Window(name="2013-01", since="2013-01-01", until="2013-02-01")
with receiving(Path(sys.argv[1]), "shop", "orders", window, fingerprint="f") as receiver:
    receiver.add(".json", [b"1"], origin="x")
    receiver.add(".json", page(), origin="x")
"""


def test_a_killed_process_is_continued(tmp_path: Path) -> None:
    """After SIGKILL in the middle of a page the whole ones are kept, and nothing else counts."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=PATIENCE)
    assert done.returncode == -signal.SIGKILL
    assert receive(tmp_path, [b"1", b"2"]) == [1]
    assert [landing(tmp_path).path_of(file).read_bytes() for file in landing(tmp_path).files] == [b"1", b"2"]


def test_a_window_is_one_folder(tmp_path: Path) -> None:
    """The name of a window cannot lead out of its table's folder."""
    for name in ("../../x", "America/New_York", ".", ".."):
        window = Window(name=name)
        with receiving(tmp_path, "shop", "orders", window, fingerprint="f") as receiver:
            receiver.add(".csv", [b"a\n"], origin="x")
        found = find_landing(tmp_path, "shop", "orders", window)
        assert found is not None
        assert found.folder.parent.parent == tmp_path / "landing/shop/orders"


# --- the disk ---


def test_a_lock_is_waited_for_and_given_up(tmp_path: Path) -> None:
    """A lock that somebody holds is waited for as long as asked."""
    with locked(tmp_path / ".lock"):
        with pytest.raises(DataCollectionException, match=r"has held the lock for 0\.1 seconds") as caught:
            with locked(tmp_path / ".lock", timeout=0.1):
                pass
    assert caught.value.error_code == "LOCKED"
    with locked(tmp_path / ".lock", timeout=0):
        pass


def _write_to_full_disk(folder: Path) -> None:
    with writing(folder / "page.json"), Path("/dev/full").open("wb", buffering=0) as full:
        full.write(b"x")


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    """What a full disk refuses says so and what to do, has a code that is retried, and no error of the system's."""
    with pytest.raises(DataCollectionException, match="No space left on device") as caught:
        _write_to_full_disk(tmp_path)
    assert (caught.value.error_code, caught.value.__cause__) == ("DISK_FULL", None)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_folder_is_a_configuration_error(tmp_path: Path) -> None:
    """A place where no file can be is a mistake of the configuration, with its path and what to do."""
    (tmp_path / "landing").write_text("a file")
    with pytest.raises(DataCollectionException, match="Not a directory") as caught:
        receive(tmp_path, [b"1"])
    assert caught.value.error_code == "CONFIGURATION_ERROR"
    assert str(tmp_path / "landing") in str(caught.value)
