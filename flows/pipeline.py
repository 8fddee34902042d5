"""The pipeline, ready-made: collect from every tool, process the rows, report. It is a flow of the package.

    python -m flows.pipeline [config.yaml]

Without PREFECT_API_URL the run starts an embedded Prefect server. Exit codes: 0, all jobs completed; 1, a job failed
(the results of the others are kept); 2, the configuration is wrong (nothing was started); 130, the run was interrupted.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from executor_adapter.pipeline.flows import run_pipeline

    code = run_pipeline(*sys.argv[1:2])
    if code < 2:
        print("UI:   make ui opens this run")
    sys.exit(code)

from executor_adapter.pipeline.flows import pipeline_flow

__all__ = ["pipeline_flow"]
