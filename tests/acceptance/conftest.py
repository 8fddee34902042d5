"""Fixtures: a real Prefect server, a real browser, and a small configuration for the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from playwright.sync_api import Browser

from executor_adapter.config import read_yaml
from tests.acceptance.browser import chromium
from tests.servers import ROOT, Server, new_user_env, prefect_server


@pytest.fixture(scope="module")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's configuration, reduced to one month of flights, with its own lake."""
    directory = tmp_path_factory.mktemp("config")
    settings = read_yaml(ROOT / "config.yaml")
    settings["lake"] = str(directory / "lake")
    flights = settings["tools"]["flights"]
    flights["tables"] = {"flights": flights["tables"]["flights"] | {"windows": ["2013-01"]}}
    (directory / "tasks").symlink_to(ROOT / "tasks")  # The path of a step in SQL is relative to the configuration.
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    return config


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A real browser."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server, whose flows have no configuration: by the project's each process pool would import pandas."""
    home = tmp_path_factory.mktemp("server")
    with prefect_server(home, new_user_env(home)) as server:
        yield server
