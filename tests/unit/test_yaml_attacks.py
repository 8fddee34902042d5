"""A YAML file that asks for code, or for all memory, is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deployments.serve import read_deployments
from executor_adapter.config import load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.prefect import read_plan

CODE = (
    "!!python/object/apply:os.system ['touch {0}']",
    "!!python/object/new:os.system ['touch {0}']",
    "!!python/object/apply:subprocess.Popen [[touch, '{0}']]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object/apply:builtins.exec [\"open('{0}', 'w')\"]",
)
LAUGHS = "\n- &a0 [x, x]\n" + "".join(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))

READERS: tuple[Callable[[Path], Any], ...] = (load_config, read_plan)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("code", CODE)
def test_code_is_refused_and_not_run(read: Callable[[Path], Any], code: str, tmp_path: Path) -> None:
    """A tag that names code is no value: nothing of it runs, and the message names the line."""
    file, victim = tmp_path / "file.yaml", tmp_path / "ran"
    file.write_text(f"lake: {code.format(victim)}\n")
    with pytest.raises(ConfigurationError, match=r"file\.yaml: line 1, column 7: could not determine a constructor"):
        read(file)
    assert not victim.exists()


@pytest.mark.parametrize("code", CODE)
def test_a_served_file_runs_no_code(code: str, tmp_path: Path) -> None:
    """Nor does a tag in the file of the deployments run anything."""
    file, victim = tmp_path / "prefect.yaml", tmp_path / "ran"
    file.write_text(f"deployments: {code.format(victim)}\n")
    with pytest.raises(Exception, match="could not determine a constructor"):
        read_deployments(file)
    assert not victim.exists()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"lake: {LAUGHS}", "its aliases stand for more than 100,000 values: write them out"),
        ("lake: &a [*a]", "its aliases stand for more than 100,000 values: write them out"),
        ("lake: &a {b: {c: *a}}", "its aliases stand for more than 100,000 values: write them out"),
        (f"lake: {'[' * 5000}{']' * 5000}", "its values are nested too deeply: flatten them"),
    ],
)
def test_a_file_that_stands_for_too_much_is_refused(
    read: Callable[[Path], Any], text: str, message: str, tmp_path: Path
) -> None:
    """Aliases that stand for billions of values, or for themselves, and endless nesting are refused at once."""
    file = tmp_path / "file.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read(file)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "value",
    ["2026-13-45", "2026-01-01T99:00:00", "0x_", f"{'9' * 5000}", "!!int x", "!!bool x", "!!timestamp x", "!!map x"],
)
def test_a_value_that_there_is_not_is_refused(read: Callable[[Path], Any], value: str, tmp_path: Path) -> None:
    """A month 13, a number without digits or of thousands of them, and the like are refused with line and column."""
    file = tmp_path / "file.yaml"
    file.write_text(f"lake: {value}\n")
    with pytest.raises(ConfigurationError, match=r"file\.yaml: line 1, column 7: ") as refused:
        read(file)
    assert "\n" not in str(refused.value)


def test_keys_are_the_text_that_is_written(tmp_path: Path) -> None:
    """`on` is a key like any other, and not `true`; a key that is a list is refused."""
    file = tmp_path / "file.yaml"
    file.write_text("on: 1\n")
    with pytest.raises(ConfigurationError, match=r"file\.yaml: on is not a key"):
        load_config(file)
    file.write_text("tools: {? [1] : 2}\n")
    with pytest.raises(ConfigurationError, match="found unhashable key"):
        load_config(file)


def test_aliases_are_allowed(tmp_path: Path) -> None:
    """An alias that stands for one value is YAML as usual."""
    file = tmp_path / "file.yaml"
    file.write_text("collection: {job_timeout: &time 5}\nprocessing: {job_timeout: *time}\n")
    assert load_config(file).processing.job_timeout == 5.0
