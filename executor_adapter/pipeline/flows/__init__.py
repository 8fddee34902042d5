"""Flows that collect and process the tables of the configuration, with a report. They need Prefect.

| module | holds |
| --- | --- |
| `entry.py` | the flows, with the parameters of their forms |
| `steps.py` | the job tasks of a run and their order, and tables as Prefect's assets |
| `maintenance.py` | the job tasks of maintenance |
| `run.py` | one run: its executor, progress and report |
| `report.py` | the lines on the terminal, the text of the report |
| `command.py` | runs the pipeline from the command line |
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.pipeline.flows.command import run_pipeline as run_pipeline
    from executor_adapter.pipeline.flows.entry import ToolName as ToolName
    from executor_adapter.pipeline.flows.entry import collection_flow as collection_flow
    from executor_adapter.pipeline.flows.entry import maintenance_flow as maintenance_flow
    from executor_adapter.pipeline.flows.entry import pipeline_flow as pipeline_flow
    from executor_adapter.pipeline.flows.entry import processing_flow as processing_flow
    from executor_adapter.pipeline.flows.run import JobsFailedError as JobsFailedError
    from executor_adapter.pipeline.upkeep import Summary as Summary

__getattr__, __dir__, __all__ = lazy_attributes(__name__)
