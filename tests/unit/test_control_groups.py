"""Reads the memory of control groups from files as the kernel lays them out, in both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from executor_adapter.pools.memory.available import AvailableMemory
from executor_adapter.pools.memory.control_groups import (
    ControlGroupV1,
    ControlGroupV2,
    groups_of_this_process,
    processor_quota,
)
from executor_adapter.pools.memory.oom_kills import OomKills

MIB = 1 << 20
V1_MOUNT = "35 31 0:32 {shown} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V2_MOUNT = "31 23 0:28 {shown} /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


def lay_out(root: Path, own: str, mount: str, groups: dict[str, dict[str, str]], *, swap: int = 0) -> None:
    """Write /proc and the files of the groups, which are named below the mount point."""
    version_1 = "- cgroup cgroup" in mount
    write(
        root,
        {
            "proc/self/cgroup": f"4:cpu,memory:{own}\n" if version_1 else f"0::{own}\n",
            "proc/self/mountinfo": "24 1 0:22 / /proc rw - proc proc rw\n" + mount,
            "proc/meminfo": f"MemTotal: {8192 << 10} kB\nMemAvailable: {8000 << 10} kB\nSwapFree: {swap << 10} kB\n",
        },
    )
    top = "sys/fs/cgroup/memory" if version_1 else "sys/fs/cgroup"
    for group, files in groups.items():
        write(root, {f"{top}{group}/{name}": content for name, content in files.items()})


def v2_group(limit: str, used: int, *, cache: int = 0, kills: int = 0) -> dict[str, str]:
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used * MIB}\n",
        "memory.stat": f"anon 1\ninactive_file {cache * MIB}\nactive_file 0\nslab_reclaimable 0\n",
        "memory.events": f"low 0\nhigh 0\nmax 3\noom {kills}\noom_kill {kills}\noom_group_kill 0\n",
        "memory.swap.max": "max\n",
        "memory.swap.current": "0\n",
    }


def v1_group(limit: int, used: int, *, cache: int = 0, kills: int = 0) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used * MIB}\n",
        "memory.stat": f"cache 1\ntotal_inactive_file {cache * MIB}\ntotal_active_file 0\n",
        "memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n",
    }


NO_LIMIT = 9223372036854771712
"""What version 1 shows of a group without a limit."""


def test_the_limit_of_a_group_of_version_2_is_read(tmp_path: Path) -> None:
    """The level of a version 2 group is its limit less what is used, without the cache that the kernel can drop."""
    lay_out(tmp_path, "/jobs", V2_MOUNT.format(shown="/"), {"/jobs": v2_group(str(512 * MIB), 300, cache=100)})
    level = AvailableMemory(root=tmp_path).read()
    assert level == ("the control group /jobs", 512 * MIB, 312 * MIB)
    assert [type(group) for group in groups_of_this_process(tmp_path)] == [ControlGroupV2, ControlGroupV2]


def test_the_limit_of_a_group_of_version_1_is_read(tmp_path: Path) -> None:
    """The level of a version 1 group is its limit less what is used, without the cache that the kernel can drop."""
    groups = {"": v1_group(NO_LIMIT, 4000), "/jobs": v1_group(512 * MIB, 300, cache=100)}
    lay_out(tmp_path, "/jobs", V1_MOUNT.format(shown="/"), groups)
    level = AvailableMemory(root=tmp_path).read()
    assert level == ("the control group /jobs", 512 * MIB, 312 * MIB)
    assert [type(group) for group in groups_of_this_process(tmp_path)] == [ControlGroupV1, ControlGroupV1]


def test_a_group_further_up_with_less_left_counts(tmp_path: Path) -> None:
    """Of nested groups, the one with the smallest share left counts; "max" is no limit."""
    groups = {"/pod": v2_group(str(1000 * MIB), 950), "/pod/box": v2_group(str(900 * MIB), 100)}
    groups["/pod/box/inner"] = v2_group("max", 90)
    lay_out(tmp_path, "/pod/box/inner", V2_MOUNT.format(shown="/"), groups)
    level = AvailableMemory(root=tmp_path).read()
    assert level == ("the control group /pod", 1000 * MIB, 50 * MIB)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_that_sees_the_path_of_its_host_finds_its_group(tmp_path: Path, version: int) -> None:
    """In a container whose mount shows its own group as the top, that group is found."""
    own = "/docker/0123abcd"
    mount = (V1_MOUNT if version == 1 else V2_MOUNT).format(shown=own)
    group = v1_group(512 * MIB, 100) if version == 1 else v2_group(str(512 * MIB), 100)
    lay_out(tmp_path, own, mount, {"": group})
    level = AvailableMemory(root=tmp_path).read()
    assert level == ("the control group /", 512 * MIB, 412 * MIB)


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_limit_the_machine_counts(tmp_path: Path, version: int) -> None:
    """Where no group has a limit ("max", or the largest number), the level is that of the machine."""
    mount = (V1_MOUNT if version == 1 else V2_MOUNT).format(shown="/")
    group = v1_group(NO_LIMIT, 100) if version == 1 else v2_group("max", 100)
    lay_out(tmp_path, "/jobs", mount, {"/jobs": group})
    assert AvailableMemory(root=tmp_path).read() == ("the machine", 8192 * MIB, 8000 * MIB)


def test_swap_that_the_group_may_use_is_left_too(tmp_path: Path) -> None:
    """Free swap counts as left, as far as the group and the machine allow it."""
    group = v2_group(str(512 * MIB), 500) | {"memory.swap.max": f"{64 * MIB}\n", "memory.swap.current": f"{4 * MIB}\n"}
    lay_out(tmp_path, "/jobs", V2_MOUNT.format(shown="/"), {"/jobs": group}, swap=1024)
    level = AvailableMemory(root=tmp_path).read()
    assert level is not None
    assert level.left == (12 + 60) * MIB


def test_without_control_groups_and_proc_nothing_is_known(tmp_path: Path) -> None:
    """On a system without /proc there is no level, and no count of OOM kills."""
    assert AvailableMemory(root=tmp_path).read() is None
    assert OomKills(tmp_path).claim() is None


@pytest.mark.parametrize("version", [1, 2])
def test_each_kill_of_the_kernel_is_claimed_once(tmp_path: Path, version: int) -> None:
    """A death is the kernel's if the count of OOM kills rose, once for each kill; otherwise it is not."""
    mount = (V1_MOUNT if version == 1 else V2_MOUNT).format(shown="/")

    def count(kills: int) -> None:
        group = v1_group(512 * MIB, 1, kills=kills) if version == 1 else v2_group(str(512 * MIB), 1, kills=kills)
        lay_out(tmp_path, "/jobs", mount, {"/jobs": group})

    count(3)
    kills = OomKills(tmp_path)
    assert kills.claim() is None  # What was counted before the first look may be of any time.
    assert kills.claim() == ""
    count(5)
    assert [kills.claim() for _ in range(3)] == ["/jobs", "/jobs", ""]


def cpu_group(version: int, quota: str) -> dict[str, str]:
    """Return the files of a group whose quota is given in microseconds, of periods of 0.1 s."""
    if version == 2:
        return {"cpu.max": f"{quota} 100000\n", "cpu.stat": "usage_usec 1\n"}
    return {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": "100000\n", "cpu.stat": "nr_periods 1\n"}


@pytest.mark.parametrize(
    ("version", "own", "above", "expected"),
    [
        (2, "150000", "400000", 1.5),
        (2, "max", "400000", 4.0),
        (2, "max", "max", None),
        (1, "50000", "-1", 0.5),
        (1, "-1", "-1", None),
    ],
)
def test_the_smallest_quota_of_processors_counts(
    tmp_path: Path, version: int, own: str, above: str, expected: float | None
) -> None:
    """Of the groups that a process is in, the one with the smallest quota of processor time limits it."""
    mount = (V1_MOUNT.replace("memory", "cpu") if version == 1 else V2_MOUNT).format(shown="/")
    top = "sys/fs/cgroup/cpu" if version == 1 else "sys/fs/cgroup"
    lay_out(tmp_path, "/pod/box", mount, {})
    for group, quota in (("/pod", above), ("/pod/box", own)):
        write(tmp_path, {f"{top}{group}/{name}": text for name, text in cpu_group(version, quota).items()})
    assert processor_quota(tmp_path) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    """On a system without control groups, no quota limits the processors."""
    assert processor_quota(tmp_path) is None
