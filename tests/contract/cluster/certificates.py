"""Certificates of the tests: an authority, and what it has signed."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.waiting import PATIENCE


class Authority:
    """A certificate authority in a folder, and one certificate of its own that serves all roles.

    `hosts`: the addresses that it is good for, which Ray checks.
    """

    def __init__(self, folder: Path, hosts: Sequence[str] = ("127.0.0.1",)) -> None:
        folder.mkdir(exist_ok=True)
        self.ca_file, self.cert, self.key = (str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem"))
        ca_key, request = str(folder / "ca-key.pem"), str(folder / "request.pem")
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        _openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", self.ca_file, "-subj", "/CN=authority")
        names = "subjectAltName=" + ",".join(f"IP:{host}" for host in hosts)
        _openssl("req", *new_key, "-keyout", self.key, "-out", request, "-subj", "/CN=node", "-addext", names)
        authority = ["-CA", self.ca_file, "-CAkey", ca_key, "-CAcreateserial", "-copy_extensions", "copy"]
        _openssl("x509", "-req", "-in", request, *authority, "-out", self.cert)

    @property
    def certificates(self) -> dict[str, str]:
        return {"ca_file": self.ca_file, "cert": self.cert, "key": self.key}

    def dask_options(self) -> list[str]:
        """Return the options of the processes of a Dask cluster."""
        files = ["--tls-ca-file", self.ca_file, "--tls-cert", self.cert, "--tls-key", self.key]
        return [*files, "--protocol", "tls"]

    def dask_configuration(self) -> dict[str, str]:
        """Return what a program's Dask configuration says of them."""
        client = "distributed.comm.tls.client"
        files = {f"{client}.cert": self.cert, f"{client}.key": self.key}
        return {"distributed.comm.tls.ca-file": self.ca_file, **files}


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=PATIENCE)
