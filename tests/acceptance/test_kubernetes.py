"""Prefect's own Kubernetes worker makes a job of our template, which the schemas of Kubernetes accept."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.servers import ROOT, new_user_env, new_venv
from tests.waiting import PATIENCE

pytestmark = pytest.mark.chaos  # It installs a worker and the schemas.

PACKAGES = ["prefect-kubernetes", "kubernetes-validate"]
VERSIONS = ["1.32", "1.37"]
"""Of Kubernetes."""
PREFECT_ASKS_FOR = {"completions", "parallelism"}
"""What the worker demands in the pod, though it belongs in the job: Kubernetes ignores it there."""

PROGRAM = """
import asyncio, json, sys, uuid

import kubernetes_validate
from prefect.client.schemas.objects import FlowRun
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

template, values, versions = map(json.loads, sys.argv[1:])
making = KubernetesWorkerJobConfiguration.from_template_and_values(base_job_template=template, values=values)
job = asyncio.run(making)
job.prepare_for_flow_run(FlowRun(id=uuid.uuid4(), name="collection", flow_id=uuid.uuid4()))
manifest = job.job_manifest
pod = manifest["spec"]["template"]["spec"]
extra = {name: pod.pop(name) for name in ("completions", "parallelism")}
for version in versions:
    kubernetes_validate.validate(manifest, version, strict=True)
print(json.dumps([manifest, extra]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with Prefect's worker."""
    return new_venv(tmp_path_factory.mktemp("worker") / "venv", PACKAGES)


def manifest_of(python: Path, folder: Path, template: Any, **values: Any) -> dict[str, Any]:
    """Return the job that the worker makes, after the schemas have accepted it."""
    arguments = [json.dumps(each) for each in (template, values, VERSIONS)]
    env = new_user_env(folder, PREFECT_API_URL="http://127.0.0.1:1/api")  # It asks a server for blocks alone.
    done = subprocess.run(
        [python, "-c", PROGRAM, *arguments], env=env, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    manifest, extra = json.loads(done.stdout)
    assert extra.keys() == PREFECT_ASKS_FOR
    return dict(manifest)


def test_kubernetes_accepts_the_jobs_of_the_template(python: Path, tmp_path: Path) -> None:
    """A job by the defaults, and one whose deployment sets variables, are valid, and say what the variables say."""
    template = json.loads((ROOT / "deployments" / "helm" / "base-job-template.json").read_text())
    by_default = manifest_of(python, tmp_path, template)["spec"]
    assert (by_default["backoffLimit"], by_default["template"]["spec"]["terminationGracePeriodSeconds"]) == (0, 60)
    pod = manifest_of(python, tmp_path, template, memory_limit="8Gi", grace_seconds=120)["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["memory"] == "8Gi"
    assert pod["terminationGracePeriodSeconds"] == 120


def test_what_kubernetes_has_not_is_seen(python: Path, tmp_path: Path) -> None:
    """A key that Kubernetes does not know fails the check."""
    template = json.loads((ROOT / "deployments" / "helm" / "base-job-template.json").read_text())
    template["job_configuration"]["job_manifest"]["spec"]["backofLimit"] = 0
    with pytest.raises(AssertionError, match="'backofLimit' was unexpected"):
        manifest_of(python, tmp_path, template)
