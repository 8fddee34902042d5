"""Fixtures: a real Prefect server, and a small configuration for the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.servers import ROOT, Server, create_database, new_user_env, prefect_server


@pytest.fixture(scope="module")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's configuration, reduced to one month of flights, with its own lake."""
    directory = tmp_path_factory.mktemp("config")
    settings = yaml.safe_load((ROOT / "config.yaml").read_text())
    settings["lake"] = str(directory / "lake")
    flights = settings["tools"]["flights"]
    flights["tables"] = {"flights": flights["tables"]["flights"] | {"windows": ["2013-01"]}}
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


@pytest.fixture(scope="module")
def user_env(tmp_path_factory: pytest.TempPathFactory, small_config: Path) -> dict[str, str]:
    """The environment of a new user: the small configuration and no server."""
    home = tmp_path_factory.mktemp("home")
    create_database(home)
    return new_user_env(home, EXECUTOR_ADAPTER_CONFIG=str(small_config))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, user_env: dict[str, str]) -> Iterator[Server]:
    with prefect_server(tmp_path_factory.mktemp("server"), user_env) as server:
        yield server
