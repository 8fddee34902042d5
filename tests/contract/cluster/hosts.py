"""Three hosts on one network, each a network namespace of this machine with an ssh server or a Dask worker of its own.

They share the machine's clock and files, so that what ran where and when can be compared. It needs root, `ip` and
/dev/net/tun.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator

HOSTS = {"far1": "10.55.0.1", "far2": "10.55.0.2", "far3": "10.55.0.3"}
CLIENT = "10.55.0.254"
BRIDGE = "eafar"
NOBODY = "02:00:00:00:00:99"
"""An address of no network card."""
SLOW_CARD, SLOW_PORT = "easlow", "eaport"
"""The network card of a slow host, and what joins it to the bridge."""
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x2, 0x1000
"""As in linux/if_tun.h."""

CAN_MAKE_HOSTS = os.geteuid() == 0 and shutil.which("ip") is not None and os.path.exists("/dev/net/tun")


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def inside(host: str) -> list[str]:
    """Return the start of a command that runs on the host."""
    return ["ip", "netns", "exec", host]


def cut_off(host: str) -> None:
    """Let nothing pass to the host or from it: no packet, and no error either."""
    _ip("link", "set", f"ea{host}", "down")


def connect(host: str) -> None:
    """End what `cut_off` did."""
    _ip("link", "set", f"ea{host}", "up")


def make_deaf(host: str) -> None:
    """Let nothing of the program's reach the host, which goes on to reach the program."""
    _ip("neigh", "replace", HOSTS[host], "lladdr", NOBODY, "dev", BRIDGE, "nud", "permanent")


def make_mute(host: str) -> None:
    """Let nothing of the host's reach the program, which goes on to reach the host."""
    command = ["ip", "neigh", "replace", CLIENT, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"]
    subprocess.run([*inside(host), *command], check=True)


def slow_down(host: str) -> None:
    """Let what goes to the host or comes from it take 100 ms, and lose one packet in twenty, until the host is removed.

    It has its address at another card from now on, which is joined to the bridge by a thread: few kernels have netem.
    """
    mac = subprocess.run([*inside(host), "cat", "/sys/class/net/eth0/address"], check=True, capture_output=True).stdout
    ends = _make_tap(SLOW_CARD), _make_tap(SLOW_PORT)
    _ip("link", "set", SLOW_PORT, "master", BRIDGE, "up")
    _ip("link", "set", SLOW_CARD, "netns", host)
    for command in (
        ["link", "set", SLOW_CARD, "address", mac.decode().strip()],
        ["link", "del", "eth0"],
        ["addr", "add", f"{HOSTS[host]}/24", "dev", SLOW_CARD],
        ["link", "set", SLOW_CARD, "up"],
        ["route", "add", "default", "via", CLIENT],
    ):
        subprocess.run([*inside(host), "ip", *command], check=True)
    threading.Thread(target=_carry_slowly, args=ends, daemon=True).start()


def _make_tap(name: str) -> int:
    """Make a network card, and return a descriptor that reads what is sent by it and writes what it receives."""
    card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(card, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return card


def _carry_slowly(first: int, second: int) -> None:
    """Carry each packet from one card to the other, until one of them is gone."""
    others = {first: second, second: first}
    carried = dict.fromkeys(others, 0)
    queue: collections.deque[tuple[float, int, bytes]] = collections.deque()
    with contextlib.suppress(OSError):
        while True:
            wait = max(0.0, queue[0][0] - time.monotonic()) if queue else None
            for card in select.select(others, (), (), wait)[0]:
                packet = os.read(card, 1 << 16)
                carried[card] += 1
                if carried[card] % 20:
                    queue.append((time.monotonic() + 0.1, others[card], packet))
            while queue and queue[0][0] <= time.monotonic():
                _, card, packet = queue.popleft()
                os.write(card, packet)
    for card in others:
        os.close(card)


def pids_on(host: str) -> list[int]:
    """Return the processes on the host."""
    return [int(pid) for pid in _ip("netns", "pids", host).split()]


def switch_off(host: str) -> None:
    """Kill everything on the host, what is being started there meanwhile too."""
    while pids := pids_on(host):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def full_port(address: str) -> Iterator[str]:
    """Yield a host and port that neither accept nor refuse a connection, as behind a firewall that drops packets."""
    with socket.create_server((address, 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(3):
            guest = stack.enter_context(socket.socket())
            guest.setblocking(False)
            guest.connect_ex(full.getsockname())
        yield f"{address}:{full.getsockname()[1]}"


@contextlib.contextmanager
def three_hosts() -> Iterator[None]:
    """Make the hosts, and remove them and all that runs there."""
    _remove()
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{CLIENT}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for host, address in HOSTS.items():
        _ip("netns", "add", host)
        _ip("link", "add", f"ea{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
        _ip("link", "set", f"ea{host}", "master", BRIDGE, "up")
        for command in (
            ["addr", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
            ["route", "add", "default", "via", CLIENT],
        ):
            subprocess.run([*inside(host), "ip", *command], check=True)
    try:
        yield
    finally:
        _remove()


def _remove() -> None:
    made = {line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()}
    for host in made & HOSTS.keys():
        switch_off(host)
        _ip("netns", "del", host)
    for link in (BRIDGE, SLOW_PORT, *(f"ea{host}" for host in HOSTS)):
        subprocess.run(["ip", "link", "del", link], check=False, capture_output=True)
