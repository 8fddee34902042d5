from __future__ import annotations

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from executor_adapter import JobExecutor
from executor_adapter.config import ClusterSettings, Settings, SshSettings
from tests.contract.cluster.sshd import SshServer


class MakeSshExecutor(Protocol):
    def __call__(self, max_workers: int = 2, *, slots: int = 1, **cluster: Any) -> JobExecutor: ...


@pytest.fixture
def make_ssh_executor(two_ssh_hosts: SshServer) -> Iterator[MakeSshExecutor]:
    """Executors with the two hosts of the ssh server; further settings are those of the section `cluster`."""
    made: list[JobExecutor] = []

    def make(max_workers: int = 2, *, slots: int = 1, **cluster: Any) -> JobExecutor:
        ssh = SshSettings(**json.loads(two_ssh_hosts.settings(slots)))
        executor = JobExecutor(max_workers, config=Settings(cluster=ClusterSettings(ssh=ssh, **cluster)))
        made.append(executor)
        return executor

    yield make
    for executor in made:
        executor.shutdown(timeout=0)


def guardian_of(agent: int) -> int:
    """Return the pid of an agent's guardian, its only child."""
    (guardian,) = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    return int(guardian)


class Runs:
    """What `functions.note_times` has written: when each of its runs began, and until when something of it lived."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def agents(self) -> list[int]:
        """Return the pids of the agents of all runs, the oldest first."""
        return [int(lines[0].split()[0]) for lines in self._lines() if lines]

    def spans(self) -> list[tuple[float, float]]:
        """Return begin and end of each run by its own clock; CLOCK_MONOTONIC is the same for all."""
        return [(float(lines[0].split()[1]), float(lines[-1].split()[1])) for lines in self._lines() if lines]

    def last_sign_of_child(self, number: int) -> float:
        """Return the time, in seconds since the epoch, at which the child of a run wrote last."""
        path = self._paths()[number]
        return path.with_name(f"{path.name}.child").stat().st_mtime

    def lives(self) -> list[tuple[str, float, float]]:
        """Return each run: its job, when it began, and the last sign of life of it or its child, by CLOCK_MONOTONIC."""
        since_epoch = time.time() - time.monotonic()
        lives = []
        for path in self._paths():
            lines = path.read_text().splitlines()
            if not lines:
                continue
            child = path.with_name(f"{path.name}.child")
            last_of_child = child.stat().st_mtime - since_epoch if child.exists() else 0.0
            began, ended = float(lines[0].split()[1]), float(lines[-1].split()[1])
            lives.append((path.name.rpartition("-")[2], began, max(ended, last_of_child)))
        return lives

    def overlaps(self) -> list[str]:
        """Return the jobs of which two runs, or what they had started, were alive at the same time."""
        by_job: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for name, begun, ended in self.lives():
            by_job[name].append((begun, ended))
        found = []
        for name, lives in by_job.items():
            lives.sort()
            pairs = itertools.pairwise(lives)
            found += [f"job {name}: {first} and {second}" for first, second in pairs if first[1] >= second[0]]
        return found

    def _lines(self) -> list[list[str]]:
        return [path.read_text().splitlines() for path in self._paths()]

    def _paths(self) -> list[Path]:
        return sorted(
            (path for path in self.folder.iterdir() if path.suffix != ".child"),
            key=lambda path: float(path.name.partition("-")[0]),
        )


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    """The runs of `note_times` in the test's folder."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return Runs(folder)
