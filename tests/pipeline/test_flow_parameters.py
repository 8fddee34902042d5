"""The parameters of flows: the choices that the form of a deployment offers, and flows that are sent elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from prefect import Flow

import flows.collection
import flows.processing
from executor_adapter.pipeline.flows import collection_flow, maintenance_flow, pipeline_flow, processing_flow
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


FLOWS = [collection_flow, processing_flow, pipeline_flow, maintenance_flow]
OF_THE_DEMO = [flows.collection.collection_flow, flows.processing.processing_flow]


@pytest.mark.parametrize("flow", FLOWS + OF_THE_DEMO, ids=lambda flow: f"{flow.fn.__module__}.{flow.name}")
def test_a_flow_that_is_served_knows_its_parameters(flow: Flow[..., Any]) -> None:
    """Prefect sends its function by value, with the names that its code uses alone, and checks its parameters."""
    sent = cloudpickle.loads(cloudpickle.dumps(flow))
    assert sent.validate_parameters({"config": "config.yaml"})["config"] == "config.yaml"
