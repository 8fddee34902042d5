"""The choices that the form of a deployment offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executor_adapter.pipeline.flows.entry import offer_configured_tools


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            "tools: {radar: {rate: 2}, sonar: {source: files, directory: ., tables: {seas: {file: a.csv}}}}",
            {"enum": ["radar", "sonar", "sonar.seas"]},
        ),
        ("lake: data", {}),
        ("tools: {radar: {speed: 2}}", {}),
    ],
    ids=["tools", "no tools", "a wrong configuration"],
)
def test_the_configured_tools_are_the_choices(
    config: str, expected: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tools and tables that are configured are offered; without any, or with a mistake, anything can be typed."""
    file = tmp_path / "config.yaml"
    file.write_text(config)
    monkeypatch.setenv("EXECUTOR_ADAPTER_CONFIG", str(file))
    schema: dict[str, Any] = {}
    offer_configured_tools(schema)
    assert schema == expected
