"""The pipeline as a program, killed at random moments and then run again, and run twice at once: always the same lake.

`KILL_ROUNDS` is the number of kills, `KILL_SEED` repeats their moments, and `KILL_PAIRS` is that of pairs of runs.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pyarrow.dataset as ds
import pytest

from tests.acceptance.conftest import Server
from tests.api_server import Answer, as_json, serving
from tests.servers import ROOT, create_database, new_user_env, prefect_server, processes_of
from tests.waiting import wait_for

ROUNDS = int(os.environ.get("KILL_ROUNDS", "30"))
PAIRS = int(os.environ.get("KILL_PAIRS", "10"))
SEED = int(os.environ.get("KILL_SEED", "0")) or random.randrange(1 << 30)
ORDERS = 3_000
ITEMS = 45
PAGE = 10
TIMEOUT = 180.0
"""Seconds for one run of the pipeline, on a loaded machine."""

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

Lake = dict[str, set[tuple[str, ...]]]
"""The rows of each table as text, in an order of their own; of a table of the API the rows of each day."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one lake grows: its configuration, and the environment of the runs, which their processes inherit."""

    folder: Path
    env: dict[str, str]

    @property
    def lake(self) -> Path:
        return self.folder / "lake"

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the pipeline in a process of its own; it must have ended by itself, or been killed, in the end."""
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, str(ROOT / "flows" / "pipeline.py"), str(self.folder / "config.yaml")]
            run = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=log, stderr=log)
        try:
            yield run
            run.wait(TIMEOUT)
        finally:
            run.kill()
            run.wait()

    def run(self, times: int = 1) -> None:
        """Run the pipeline, or several at once; each must succeed."""
        if times == 0:
            return
        with self.started() as run:
            self.run(times - 1)
        assert run.returncode == 0, (self.folder / "log").read_text()[-4000:]

    def content(self) -> Lake:
        """Return all rows; the days of the API are alike, and a run at midnight has another one.

        The number of a reject counts the rows of one answer; after a kill, an answer has what was missing.
        """
        found: Lake = {}
        for layer in ("raw", "processed", "rejected"):
            for table in self.lake.glob(f"{layer}/*/*"):
                parts = table.glob("window=*") if table.parent.name == "api" else [table]
                rows = [ds.dataset(part, format="parquet", partitioning="hive").to_table() for part in parts]
                rows = [each.select([name for name in each.column_names if name != "row"]) for each in rows]
                found[f"{layer}/{table.name}"] = {tuple(sorted(map(str, each.to_pylist()))) for each in rows}
        return found

    def wait_until_nothing_runs(self) -> None:
        """Wait until no process of the runs is there any more: no worker, no guardian, no server."""
        name = f"EXECUTOR_ADAPTER_CONFIG={self.folder / 'config.yaml'}"
        try:
            wait_for(lambda: not processes_of(name), what="the end of all processes")
        except AssertionError as error:
            error.add_note("\n".join(str(each) for each in processes_of(name)))
            raise


def items(path: str, body: Any) -> Answer:
    """Answer with a page of items, or with the lines of one."""
    place, _, query = path.partition("?")
    if place == "/items":
        start = int(parse_qs(query)["offset"][0])
        page = [{"id": number, "name": f"item {number}"} for number in range(start, min(start + PAGE, ITEMS))]
        return as_json({"items": page, "total": ITEMS})
    return as_json([{"number": place.rpartition("/")[2], "day": "2024-02-30" if place.endswith("7") else "2024-02-29"}])


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with serving(items) as (url, _):
        yield url


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with orders of some zones; some rows are not numbers, one line is no row, and some rows come twice."""
    folder = tmp_path_factory.mktemp("source")
    lines = [f"A{n % 2_880},{'far' if n % 500 == 0 else n % 90 - 45},{n % 6}" for n in range(ORDERS)]
    (folder / "orders.csv").write_text("id,amount,zone\n" + "\n".join(lines) + "\nA\n")
    return folder


def make_place(folder: Path, env: dict[str, str], source: Path, api: str) -> Place:
    """Return a new place."""
    folder.mkdir()
    orders = {
        "file": "orders.csv",
        "partition": "zone",
        "schema": {"columns": {"id": "text", "amount": "integer", "zone": "integer"}},
        "steps": [{"deduplicate": {"key": "id", "keep": "first", "reject": True}}],
    }
    resources = {
        "items": {
            "path": "/items",
            "records": "items",
            "paging": {"by": "offset", "total": "total"},
            "schema": {"columns": {"id": "integer", "name": "text"}},
            "key": "id",
        },
        "lines": {
            "path": "/lines/{id}",
            "for_each": "items",
            "paging": {"by": "none"},
            "schema": {"columns": {"number": "integer", "day": "date", "parent_id": "text"}},
            "key": ["parent_id", "number"],
            "steps": [{"sql": "SELECT * RENAME (number AS item) FROM {rows}"}],
        },
    }
    settings = {
        "lake": "lake",
        "collection": {"retry_delay": 0.5},
        "processing": {"retry_delay": 0.5},
        "tools": {
            "shop": {"source": "files", "directory": str(source), "tables": {"orders": orders}},
            "api": {"source": "rest", "url": api, "days": 0, "page_size": PAGE, "resources": resources},
        },
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    return Place(folder=folder, env=env | {"EXECUTOR_ADAPTER_CONFIG": str(folder / "config.yaml")})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with prefect_server(folder, new_user_env(folder)) as server:
        yield server


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory, source: Path, api: str) -> tuple[Lake, float]:
    """What an undisturbed run leaves, and the seconds that it took from its first file of the lake on."""
    place = make_place(tmp_path_factory.mktemp("whole") / "place", server.env, source, api)
    with place.started() as run:
        wait_for_lake(place)
        began = time.monotonic()
    assert run.returncode == 0, (place.folder / "log").read_text()[-4000:]
    took = time.monotonic() - began
    place.wait_until_nothing_runs()
    expected = place.content()
    counts = {name: [len(rows) for rows in windows] for name, windows in expected.items() if windows != {()}}
    assert counts == {
        "raw/orders": [ORDERS - 6],
        "processed/orders": [ORDERS - 6 - 119],
        "rejected/orders": [126],
        **{f"{layer}/items": [ITEMS] for layer in ("raw", "processed")},
        **{f"{layer}/lines": [ITEMS - 4] for layer in ("raw", "processed")},
        "rejected/lines": [4],
    }
    return expected, took


def wait_for_lake(place: Place) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not place.lake.exists():
        assert time.monotonic() < deadline, (place.folder / "log").read_text()[-4000:]
        time.sleep(0.01)


def test_a_killed_run_and_another_one_make_the_same_lake(
    server: Server, tmp_path: Path, source: Path, api: str, whole: tuple[Lake, float]
) -> None:
    """A run is killed at a random moment and leaves no process; the next one makes the lake of an undisturbed one."""
    (expected, took), chance = whole, random.Random(SEED)
    unfinished = 0
    for number in range(ROUNDS):
        place = make_place(tmp_path / f"{number}", server.env, source, api)
        moment = chance.uniform(0.0, took)
        with place.started() as run:
            wait_for_lake(place)
            with suppress(subprocess.TimeoutExpired):
                run.wait(moment)
            run.kill()
        place.wait_until_nothing_runs()
        unfinished += place.content() != expected
        place.run()
        assert place.content() == expected, f"killed after {moment:.2f} s, KILL_SEED={SEED}"
        place.wait_until_nothing_runs()
    print(f"{ROUNDS} runs killed, {unfinished} with an unfinished lake; KILL_SEED={SEED}")
    assert unfinished


def test_a_killed_run_leaves_no_embedded_server(
    tmp_path: Path, source: Path, api: str, whole: tuple[Lake, float]
) -> None:
    """A run that has started a server of its own, and is killed at any moment of it, leaves no process."""
    create_database(tmp_path)
    env, chance = new_user_env(tmp_path), random.Random(SEED)
    place = make_place(tmp_path / "first", env, source, api)
    began = time.monotonic()
    place.run()
    took = time.monotonic() - began
    for number in range(max(1, ROUNDS // 6)):
        place = make_place(tmp_path / f"{number}", env, source, api)
        with place.started() as run:
            with suppress(subprocess.TimeoutExpired):
                run.wait(chance.uniform(0.0, took))
            run.kill()
        place.wait_until_nothing_runs()
        place.run()
        assert place.content() == whole[0], f"KILL_SEED={SEED}"


def test_two_runs_at_once_make_the_same_lake(
    server: Server, tmp_path: Path, source: Path, api: str, whole: tuple[Lake, float]
) -> None:
    """Two runs at once both succeed, and make the lake of one."""
    for number in range(PAIRS):
        place = make_place(tmp_path / f"{number}", server.env, source, api)
        place.run(times=2)
        assert place.content() == whole[0]
