"""A real ssh server of the tests: on 127.0.0.1, with keys, a port and a configuration of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers import free_port
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[3]
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class SshServer:
    """Accepts ssh connections under the names of several hosts, all of which are one.

    `address`: that at which it listens. `inside`: the start of a command that runs on that host, if it is another one.
    """

    def __init__(
        self,
        folder: Path,
        hosts: tuple[str, ...] = ("node1", "node2"),
        address: str = "127.0.0.1",
        inside: Sequence[str] = (),
    ) -> None:
        assert SSHD is not None, "install openssh-server"
        folder.mkdir(exist_ok=True)
        self._address = address
        self._inside = inside
        self.folder = folder
        self.hosts = hosts
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("host_key", "user_key"):
            if not (folder / name).exists():
                command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
                subprocess.run(command, check=True)
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress {address}\nHostKey {folder}/host_key\nPidFile none\n"
            f"AuthorizedKeysFile {folder}/user_key.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "MaxStartups 100\nMaxSessions 100\n"
        )
        public = (folder / "host_key.pub").read_text()
        (folder / "known_hosts").write_text(f"[{address}]:{self.port} {public}")
        (folder / "ssh_config").write_text(
            f"Host {' '.join(hosts)}\n  HostName {address}\n  Port {self.port}\n  IdentityFile {folder}/user_key\n"
            f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n"
        )

    def start(self) -> None:
        """Start the server, and return when it accepts connections."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # It separates privileges there.
        assert SSHD is not None
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._inside, SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log
            )
        until = time.monotonic() + 200
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self._address, self.port), timeout=1):
                return
            assert time.monotonic() < until, (self.folder / "sshd.log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server; sessions that are open stay so."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._process = None

    @property
    def command(self) -> list[str]:
        """The ssh program with the options by which it knows the hosts."""
        return ["ssh", "-F", str(self.folder / "ssh_config")]

    @property
    def python(self) -> str:
        """The command that runs this Python with this package on a host."""
        return f"env PYTHONPATH={ROOT} {sys.executable}"

    def settings(self, slots: int = 1) -> str:
        """Return the value of EXECUTOR_ADAPTER_CLUSTER__SSH for these hosts."""
        hosts = [{"host": name, "slots": slots, "python": self.python, "directory": str(ROOT)} for name in self.hosts]
        return json.dumps({"hosts": hosts, "command": self.command})


@contextlib.contextmanager
def ssh_server(folder: Path, hosts: tuple[str, ...] = ("node1", "node2")) -> Iterator[SshServer]:
    """Run a server while the block lasts."""
    server = SshServer(folder, hosts)
    server.start()
    try:
        yield server
    finally:
        server.stop()
