"""The memory of control groups (cgroups), version 1 and 2: what each allows, what it uses, what the kernel killed.

A process is in one group, and each group above that one may have a limit too. Files that the kernel can drop from its
cache at once do not count as used: a job that reads a large file is not to be ended for it. Pages of memory files
(tmpfs, memfd, shared memory) do count, because the kernel cannot drop them. Of processors only the quota is read.

All paths are below `root`, so that tests can lay out the files of any system.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

ROOT = Path("/")
_UNLIMITED = 1 << 60
"""Bytes. A larger limit is none: version 1 shows the largest number that it can hold."""
_DROPPABLE = ("inactive_file", "active_file", "slab_reclaimable")


class ControlGroup(ABC):
    """One control group, by its directory. Each version names the files that it has for the same."""

    limit_file: ClassVar[str]
    used_file: ClassVar[str]
    kills_file: ClassVar[str]
    cache_prefix: ClassVar[str] = ""
    """What the names in memory.stat begin with that count the groups below this one too."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self._prefix = f"{directory}/"

    def room(self, swap_free: int) -> tuple[int, int] | None:
        """Return the limit and what is left; None if there is no limit. `swap_free`: the machine's free swap."""
        limit, used = self._number(self.limit_file), self._number(self.used_file)
        if limit is None or limit > _UNLIMITED or used is None:
            return None
        stat = self._table("memory.stat")
        used = max(0, used - sum(stat.get((self.cache_prefix + key).encode(), 0) for key in _DROPPABLE))
        return limit, limit - used + (min(swap_free, self._swap_left()) if swap_free else 0)

    def oom_kills(self) -> int | None:
        """Return how many processes of the group the kernel has killed because memory ran out; None if it is hidden."""
        return self._table(self.kills_file).get(b"oom_kill")

    @abstractmethod
    def _swap_left(self) -> int: ...

    def _number(self, file: str) -> int | None:
        """Return the number in a file; None if it is "max" or cannot be read."""
        text = _read(self._prefix + file)
        return int(text) if text.isdigit() else None

    def _table(self, file: str) -> dict[bytes, int]:
        """Return the numbers in a file of lines `key number`."""
        pairs = (line.split() for line in _read(self._prefix + file).splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


class ControlGroupV1(ControlGroup):
    """A group of version 1, in the hierarchy of the memory controller."""

    limit_file, used_file = "memory.limit_in_bytes", "memory.usage_in_bytes"
    kills_file, cache_prefix = "memory.oom_control", "total_"

    def _swap_left(self) -> int:
        both, used = self._number("memory.memsw.limit_in_bytes"), self._number("memory.memsw.usage_in_bytes")
        if both is None or used is None:  # The kernel does not count swap, and so does not limit it.
            return _UNLIMITED
        allowed = both - (self._number(self.limit_file) or 0)
        return max(0, allowed - (used - (self._number(self.used_file) or 0)))


class ControlGroupV2(ControlGroup):
    """A group of version 2."""

    limit_file, used_file, kills_file = "memory.max", "memory.current", "memory.events"

    def _swap_left(self) -> int:
        allowed, used = self._number("memory.swap.max"), self._number("memory.swap.current")
        return _UNLIMITED if allowed is None or used is None else max(0, allowed - used)


def groups_of_this_process(root: Path = ROOT) -> list[ControlGroup]:
    """Return the group that limits the memory of this process and those above it, its own first; none if unknown."""
    return _groups(root, "memory", "memory.stat")


def processor_quota(root: Path = ROOT) -> float | None:
    """Return how many processors' time this process and its group may use, as in 1.5; None if that is not limited."""
    quotas = [_quota(group) for group in _groups(root, "cpu", "cpu.stat")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: ControlGroup) -> float | None:
    if isinstance(group, ControlGroupV2):
        time_, _, period = _text(group.directory / "cpu.max").partition(" ")
    else:
        time_, period = (_text(group.directory / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(time_) / int(period) if time_.isdigit() and period.isdigit() and int(period) else None


def _groups(root: Path, controller: str, file: str) -> list[ControlGroup]:
    """Return the groups of this process under a controller, its own first; `file`: what each of them has."""
    paths = _own_paths(root)
    for mount in _mounts(root, controller):
        own = paths.get(controller if mount.kind is ControlGroupV1 else "")
        if own is not None and (found := _groups_below(mount, own, root)) and _have(found, file):
            return found
    return []


class _Mount(NamedTuple):
    kind: type[ControlGroup]
    shown: str
    """The group that is the top directory of the mount: in a container often its own."""
    point: str


def _own_paths(root: Path) -> dict[str, str]:
    """Return the path of this process's group by controller, "" for version 2, from /proc/self/cgroup."""
    paths = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        paths.update(dict.fromkeys(controllers.split(","), path))
    return paths


def _mounts(root: Path, controller: str) -> Iterator[_Mount]:
    """Yield the mounts that may have a controller: those of version 1 first.

    Where both are mounted, version 2 has the controllers that version 1 does not.
    """
    found = []
    for fields, kind, options in mounts(root):
        if kind == "cgroup" and controller in options.split()[-1].split(","):
            found.append(_Mount(ControlGroupV1, *fields[3:5]))
        elif kind == "cgroup2":
            found.append(_Mount(ControlGroupV2, *fields[3:5]))
    return iter(sorted(found, key=lambda mount: mount.kind is ControlGroupV2))


def mounts(root: Path = ROOT) -> Iterator[tuple[list[str], str, str]]:
    """Yield of each mount its fields, the type of its file system, and the rest, see proc_pid_mountinfo(5)."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.partition(" ")
        yield fields.split(), kind, options


def _groups_below(mount: _Mount, own: str, root: Path) -> list[ControlGroup]:
    """Return the groups from `own` up to the top of the mount, of those that the mount shows."""
    top = root / mount.point.lstrip("/")
    # A container that sees the paths of its host has its own group as the top of the mount.
    below = own.removeprefix(mount.shown) if mount.shown != "/" else own
    directory = top / below.strip("/")
    if not directory.is_dir() or ".." in below:
        directory = top
    directories = [directory, *directory.parents]
    shown = directories[: directories.index(top) + 1]
    return [mount.kind(each, "/" + str(each.relative_to(top)).removeprefix(".")) for each in shown]


def _have(groups: list[ControlGroup], file: str) -> bool:
    return any((group.directory / file).exists() for group in groups)


def _text(file: Path) -> str:
    return _read(str(file)).decode(errors="replace")


def _read(file: str) -> bytes:
    """Return the content of a file of the kernel; nothing if it cannot be read."""
    with contextlib.suppress(OSError), open(file, "rb", buffering=0) as opened:
        return opened.read().strip()
    return b""
