"""The wheel that this source builds, which users install."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build the wheel without a network: the build backend is one of the development dependencies."""
    directory = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(directory)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    (built,) = directory.glob("*.whl")
    assert built.name.startswith("prefect_executor_adapter-")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_the_package_alone(wheel: zipfile.ZipFile) -> None:
    """The wheel contains every module of the package, and no flow, task, test or deployment."""
    houses = {name.split("/")[0] for name in wheel.namelist()}
    assert {house for house in houses if not house.endswith(".dist-info")} == {"executor_adapter"}
    written = {str(path.relative_to(ROOT)) for path in (ROOT / "executor_adapter").rglob("*.py")}
    assert written <= set(wheel.namelist())


def test_prefect_and_the_shell_find_the_package(wheel: zipfile.ZipFile) -> None:
    """The wheel names the command, and for Prefect the module of the block."""
    (points,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    lines = wheel.read(points).decode().splitlines()
    assert {"executor-adapter = executor_adapter.cli:main", "executor_adapter = executor_adapter.blocks"} <= set(lines)
    assert "[prefect.collections]" in lines


def test_the_pythons_that_are_named_are_those_that_are_tested() -> None:
    """The classifiers name exactly the versions of Python with which CI runs the tests."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [each.rpartition(" ")[2] for each in project["classifiers"] if ":: Python :: 3." in each]
    assert named == tested
    assert project["requires-python"] == f">={tested[0]}"


def test_the_wheel_is_typed_and_licensed(wheel: zipfile.ZipFile) -> None:
    """The wheel contains py.typed and the licence."""
    names = wheel.namelist()
    assert "executor_adapter/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()


def test_the_lock_file_is_up_to_date() -> None:
    """requirements-dev.lock has a version of each dependency, within its bounds; if not: run `make lock`."""
    pins = (Requirement(line) for line in (ROOT / "requirements-dev.lock").read_text().splitlines() if "==" in line)
    locked = {pin.name: next(iter(pin.specifier)).version for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = [Requirement(each) for each in itertools.chain(*lists)]
    missing = [
        str(each)
        for each in wanted
        if each.name != project["name"]
        and not each.specifier.contains(locked.get(canonicalize_name(each.name), "0"), prereleases=True)
    ]
    assert missing == []


def test_the_command_names_the_extra_that_is_missing() -> None:
    """Without what the extra `cli` installs, the command says in one line what to install."""
    code = "import sys; sys.modules['typer'] = None; from executor_adapter.cli import main; main(['version'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    said = "the command needs typer: pip install 'prefect-executor-adapter[cli]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
