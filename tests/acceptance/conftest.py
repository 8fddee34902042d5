"""A real Prefect server, and a configuration small enough to run against it often."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.acceptance.servers import QUICK, ROOT, Server, free_port, poll, prefect, running


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own configuration, cut down to one month of flights, with a lake of its own."""
    directory = tmp_path_factory.mktemp("config")
    settings = yaml.safe_load((ROOT / "config.yaml").read_text())
    settings["lake"] = str(directory / "lake")
    flights = settings["tools"]["flights"]
    flights["tables"] = {"flights": flights["tables"]["flights"] | {"windows": ["2013-01"]}}
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


@pytest.fixture(scope="session")
def client_env(tmp_path_factory: pytest.TempPathFactory, small_config: Path) -> dict[str, str]:
    """The environment of a new user of this project: a Prefect home of its own, no server, the small configuration."""
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "EXECUTOR_ADAPTER_"))
    }
    home = str(tmp_path_factory.mktemp("prefect-home"))
    return inherited | QUICK | {"PREFECT_HOME": home, "EXECUTOR_ADAPTER_CONFIG": str(small_config)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, client_env: dict[str, str]) -> Iterator[Server]:
    """A Prefect server on SQLite, on a free port, with nothing in it."""
    directory = tmp_path_factory.mktemp("server")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    api = {"PREFECT_API_URL": f"{url}/api", "PREFECT_UI_API_URL": f"{url}/api", "PREFECT_HOME": str(directory)}
    server = Server(url=url, env=client_env | api)
    command = prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    with running(command, env=server.env, cwd=directory, log=directory / "server.log"):
        poll(server.healthy, within=60, what=f"a Prefect server on {url}")
        yield server
