"""The files of deployments/ that other programs read: they are valid, and name only what there is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import prefect
import pytest
import yaml
from prefect.settings import Settings as PrefectSettings
from pydantic import AliasChoices

from deployments.serve import environment
from deployments.server_ha import SETTINGS as SERVER_SETTINGS
from executor_adapter.config import Settings
from executor_adapter.monitoring import probe
from executor_adapter.prefect import BootstrapPlan
from executor_adapter.prefect.setup.automations import automations
from executor_adapter.prefect.setup.plan import heartbeat_seconds
from tests.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
KIT = ROOT / "deployments"
COMPOSE = KIT / "docker" / "compose.yaml"
UNITS = sorted(path for path in (KIT / "systemd").iterdir() if path.suffix in (".service", ".timer"))
PROBE = ["python", "-m", probe.__name__]
SERVICES = {name: value for name, value in SERVER_SETTINGS.items() if name.startswith("PREFECT_SERVER_SERVICES")}


def program(name: str, package: str) -> str:
    """Return the path of a program; where it is missing, skip the test, or fail in CI."""
    found = shutil.which(name)
    if found is None:
        missing = f"no {name}: apt-get install {package}"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    return found


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a program that must succeed, and return what it wrote to both outputs."""
    env = os.environ | environment
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def parsed(path: Path) -> Any:
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


FILES = sorted(path for path in KIT.rglob("*") if path.suffix in (".yaml", ".json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(KIT)))
def test_every_file_can_be_parsed(path: Path) -> None:
    """Every YAML and JSON file of deployments/ parses to a mapping."""
    assert isinstance(parsed(path), dict)


# --- settings ---


def prefect_variables() -> set[str]:
    """Return the environment variables of Prefect's settings, and of prefect-redis."""
    from prefect_redis.client import RedisMessagingSettings

    prefix = str(RedisMessagingSettings.model_config["env_prefix"])
    of_redis = {f"{prefix}{name}".upper() for name in RedisMessagingSettings.model_fields}
    return (
        set(_variables(PrefectSettings))
        | of_redis
        | {
            "PREFECT_API_AUTH_STRING",
            "PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR",  # Read from the environment alone.
        }
    )


def _variables(model: Any) -> Iterator[str]:
    prefix = str(model.model_config.get("env_prefix") or "")
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
            yield from _variables(field.annotation)
            continue
        yield f"{prefix}{name}".upper()
        if isinstance(field.validation_alias, AliasChoices):
            yield from (alias.upper() for alias in field.validation_alias.choices if isinstance(alias, str))


def own_variables() -> set[str]:
    """Return the environment variables of this package's settings."""
    names = {"EXECUTOR_ADAPTER_CONFIG"}
    for section, field in Settings.model_fields.items():
        names.add(f"EXECUTOR_ADAPTER_{section}".upper())
        names |= {f"EXECUTOR_ADAPTER_{section}__{key}".upper() for key in getattr(field.annotation, "model_fields", ())}
    return names


CONFIGURED = [*FILES, *UNITS, *(KIT / "systemd").glob("*.env"), KIT / "docker" / "Dockerfile"]


@pytest.mark.parametrize("path", CONFIGURED, ids=lambda path: str(path.relative_to(KIT)))
def test_every_environment_variable_is_a_setting(path: Path) -> None:
    """What these files set for Prefect and for this package are settings that there are."""
    text = re.sub(r"\$\{\w+", "", path.read_text())
    named = set(re.findall(r"\b(?:PREFECT|EXECUTOR_ADAPTER)_[A-Z0-9_]+\b", text))
    known = prefect_variables() | own_variables() | {"PREFECT_PORT"}
    assert sorted(named - known) == []


def test_a_variable_that_is_not_text_is_refused() -> None:
    """A number in the `env` of a deployment, as YAML reads one without quotes, is refused with the way out."""
    entry = {"name": "nightly", "work_pool": {"job_variables": {"env": {"DAYS": 3}}}}
    with pytest.raises(SystemExit, match=r"nightly: job_variables\.env\.DAYS is 3: write it in quotes"):
        environment([entry])


@cache
def server_environments() -> dict[str, dict[str, str]]:
    """Return the settings of Prefect's server by the file that sets them."""
    lines = (KIT / "systemd" / "server.env").read_text().splitlines()
    values = parsed(KIT / "helm" / "server.yaml")["global"]["prefect"]["env"]
    return {
        "compose": parsed(COMPOSE)["services"]["services"]["environment"],
        "systemd": dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")),
        "helm": {each["name"]: each["value"] for each in values},
    }


@pytest.mark.parametrize("where", ["compose", "systemd", "helm"])
def test_the_services_are_tuned_alike_everywhere(where: str) -> None:
    """Every installation has the settings of recorder and vacuum of `make server-ha`, which the tests run."""
    environment = server_environments()[where]
    assert len(SERVICES) == 5
    assert {name: environment.get(name) for name in SERVICES} == SERVICES
    for name in ("PREFECT_SERVER_EVENTS_CAUSAL_ORDERING", "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"):
        assert environment[name] == SERVER_SETTINGS[name]


# --- the image and compose ---


def test_the_image_has_what_it_copies_and_runs_without_privileges() -> None:
    """The Dockerfile copies files that exist, installs extras that exist, and ends as a user that is not root."""
    text = (KIT / "docker" / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.M) for word in line.split()}
    assert copied >= {
        "requirements-dev.lock",
        "pyproject.toml",
        "executor_adapter",
        "flows",
        "tasks",
        "deployments",
        "prefect.yaml",
    }
    assert [name for name in copied if not (ROOT / name).exists()] == []
    ignored = (KIT / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in ignored if line.startswith("!")}
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.M)
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras.split(",")) <= offered.keys()
    assert re.findall(r"^USER (\S+)$", text, re.M) == ["1001:1001"]
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-slim-\w+$", text, re.M)
    assert "--constraint requirements-dev.lock" in text
    assert 'ENTRYPOINT ["tini", "--"]' in text


def test_compose_accepts_its_file() -> None:
    """Docker Compose finds no error in compose.yaml, and every file that it mounts exists."""
    docker = shutil.which("docker-compose") is None and shutil.which("docker")
    command = [docker, "compose"] if docker else [program("docker-compose", "docker-compose")]
    told = run(*command, "--file", COMPOSE, "config", "--quiet", POSTGRES_PASSWORD="x", GRAFANA_PASSWORD="x")
    assert told == ""
    mounts = [mount for each in parsed(COMPOSE)["services"].values() for mount in each.get("volumes", ())]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("../")]
    assert files
    assert [file for file in files if not (COMPOSE.parent / file).exists()] == []


def test_compose_runs_the_services_apart_and_two_workers() -> None:
    """The API serves without services, these run once, and the workers have an init's time to end and shared memory."""
    services = parsed(COMPOSE)["services"]
    assert "--no-services" in services["api"]["command"]
    assert services["services"]["command"] == ["prefect", "server", "services", "start"]
    worker = services["worker"]
    assert worker["deploy"]["replicas"] == 2
    assert (worker["shm_size"], worker["stop_grace_period"]) == ("1g", "60s")
    pools = {each["work_pool"]["name"] for each in parsed(KIT / "prefect.yaml")["deployments"]}
    assert pools == {worker["command"][worker["command"].index("--pool") + 1]}


# --- monitoring ---

SELECTOR = re.compile(r"\b(?:executor_adapter|prefect)_\w+(?:\{([^}]*)\})?")


def monitoring_expressions() -> dict[str, str]:
    """Return every PromQL expression of the rules and the dashboard by its name."""
    groups = parsed(KIT / "monitoring" / "rules.yaml")["groups"]
    found = {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
    dashboard = parsed(KIT / "monitoring" / "grafana" / "dashboards" / "executor-adapter.json")
    for panel in dashboard["panels"]:
        found |= {f"{panel['title']} {each['refId']}": each["expr"] for each in panel.get("targets", ())}
    variables = dashboard["templating"]["list"]
    return found | {each["name"]: each["definition"] for each in variables if "definition" in each}


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The labels of each metric that is exported: by this package as it is scraped, and by the Prefect exporter."""
    import urllib.request

    from prometheus_client.parser import text_string_to_metric_families

    from executor_adapter import Job
    from executor_adapter.config import MonitoringSettings
    from executor_adapter.testing import InlineExecutor

    settings = Settings(monitoring=MonitoringSettings(metrics_port=0))
    with InlineExecutor(config=settings) as executor:
        executor.submit(Job(function="builtins:int", args=("x",), retry_attempts=1, retry_delay=0)).exception()
        assert executor.metrics_url is not None
        with urllib.request.urlopen(executor.metrics_url, timeout=PATIENCE) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    ours = {sample.name: set(sample.labels) for each in families for sample in each.samples}
    theirs = {name: set(labels) for name, labels in parsed(KIT / "monitoring" / "exporter_metrics.yaml").items()}
    return ours | theirs


@pytest.mark.parametrize("name", monitoring_expressions())
def test_every_metric_and_label_of_rules_and_dashboard_is_exported(name: str, exported: dict[str, set[str]]) -> None:
    """Each metric of an expression is one that a scrape finds, and each label of it one that the metric has."""
    expression = monitoring_expressions()[name]
    metrics = set(re.findall(r"\b(?:executor_adapter|prefect)_\w+", expression))
    assert metrics or "up{" in expression, "it watches something"
    assert sorted(metrics - exported.keys()) == []
    labels = {"instance", "job"}.union(*(exported[metric] for metric in metrics))
    asked = {label for found in SELECTOR.finditer(expression) for label in re.findall(r"(\w+)\s*=", found[1] or "")}
    grouped = {word for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for word in re.findall(r"\w+", group)}
    assert sorted((asked | grouped) - labels) == []


def test_prometheus_accepts_its_configuration_and_each_alert_fires() -> None:
    """Promtool finds no error in the rules and the configuration, and every alert has a test that makes it fire."""
    promtool, monitoring = program("promtool", "prometheus"), KIT / "monitoring"
    run(promtool, "check", "config", "prometheus.yaml", cwd=monitoring)
    run(promtool, "test", "rules", "rules_test.yaml", cwd=monitoring)
    tests = parsed(monitoring / "rules_test.yaml")["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for group in parsed(monitoring / "rules.yaml")["groups"] for rule in group["rules"]}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} >= alerts - {"JobsRetry"}


def test_each_alert_is_explained() -> None:
    """The documentation has a line on each alert of the rules."""
    page = (ROOT / "docs" / "how-to" / "deploy" / "alerts.md").read_text()
    alerts = [rule["alert"] for group in parsed(KIT / "monitoring" / "rules.yaml")["groups"] for rule in group["rules"]]
    assert [alert for alert in alerts if f"| `{alert}` |" not in page] == []


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    """Each panel has an id and a place of its own, within the 24 columns."""
    panels = parsed(KIT / "monitoring" / "grafana" / "dashboards" / "executor-adapter.json")["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (column, line)
        for grid in (panel["gridPos"] for panel in panels)
        for column in range(grid["x"], grid["x"] + grid["w"])
        for line in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(column for column, _ in cells) < 24


# --- Kubernetes, ECS and systemd ---

CHART_KEYS = {
    "server": "global.prefect.image.prefectTag global.prefect.env server.replicaCount server.basicAuth.enabled "
    "server.basicAuth.existingSecret server.uiConfig.prefectUiApiUrl server.resources "
    "backgroundServices.runAsSeparateDeployment backgroundServices.resources backgroundServices.env "
    "backgroundServices.messaging.broker backgroundServices.messaging.cache backgroundServices.messaging.redis.host "
    "backgroundServices.messaging.redis.port backgroundServices.messaging.redis.db "
    "backgroundServices.messaging.redis.existingSecret backgroundServices.messaging.docket.existingSecret "
    "postgresql.enabled externalDatabase.existingSecret externalDatabase.connectionStringSecretKey redis.enabled",
    "worker": "worker.apiConfig worker.selfHostedServerApiConfig.apiUrl "
    "worker.selfHostedServerApiConfig.basicAuth.enabled worker.selfHostedServerApiConfig.basicAuth.existingSecret "
    "worker.image.repository worker.image.prefectTag worker.config.type worker.config.workPool "
    "worker.config.workQueues worker.config.installPolicy worker.config.limit worker.replicaCount "
    "worker.podDisruptionBudget worker.livenessProbe.enabled worker.resources",
    "exporter": "prefectApiUrl basicAuth.enabled basicAuth.existingSecret serviceMonitor.enabled "
    "serviceMonitor.interval",
}
"""The keys of Prefect's charts (PrefectHQ/prefect-helm, August 2026) that the values use; charts ignore other keys."""


@pytest.mark.parametrize("chart", CHART_KEYS)
def test_values_use_keys_that_the_chart_has(chart: str) -> None:
    """The values of each chart use only keys that were checked against the chart's schema and its own values."""

    def unknown(values: Any, path: str) -> Iterator[str]:
        if path in known:
            return
        if not isinstance(values, dict) or not any(key.startswith(f"{path}.") for key in known):
            yield path
            return
        for key, value in values.items():
            yield from unknown(value, f"{path}.{key}")

    known = set(CHART_KEYS[chart].split())
    values = parsed(KIT / "helm" / f"{chart}.yaml")
    assert [path for key, value in values.items() for path in unknown(value, key)] == []


def template() -> tuple[dict[str, Any], dict[str, Any]]:
    found = parsed(KIT / "helm" / "base-job-template.json")
    return found["job_configuration"], found["variables"]["properties"]


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each leaf of a nested mapping."""
    match value:
        case dict() if value:
            for key, each in value.items():
                yield from paths(each, f"{path}/{key}")
        case list() if value:
            for index, each in enumerate(value):
                yield from paths(each, f"{path}/{index}")
        case _:
            yield path


def test_the_base_job_template_has_all_that_prefect_s_worker_needs() -> None:
    """Our job has every key of Prefect's own template, every placeholder a variable, and every variable a use."""
    views = Path(prefect.__file__).parent / "server" / "api" / "collections_data" / "views"
    workers = json.loads((views / "aggregate-worker-metadata.json").read_text())
    theirs = workers["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]["job_configuration"]
    configuration, variables = template()
    assert sorted(set(paths(theirs)) - set(paths(configuration))) == []
    placeholders = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(configuration)))
    assert placeholders == variables.keys()
    assert all({"title", "description", "default"} <= variable.keys() for variable in variables.values())


def test_a_pod_has_memory_a_grace_period_and_no_second_start() -> None:
    """A pod has limited memory, time to end its jobs and shared memory, and Kubernetes does not start it again."""
    configuration, variables = template()
    spec = configuration["job_manifest"]["spec"]
    pod = spec["template"]["spec"]
    assert (variables["backoff_limit"]["default"], variables["grace_seconds"]["default"]) == (0, 60)
    assert pod["terminationGracePeriodSeconds"] == "{{ grace_seconds }}"
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["memory"] == "{{ memory_limit }}"
    assert {"/dev/shm", "/tmp"} <= {mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert variables["env"]["default"]["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"


def test_ecs_accepts_the_task_definition() -> None:
    """The task definition has the parameters of RegisterTaskDefinition, as AWS's own library knows them."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    definition = parsed(KIT / "ecs" / "task-definition.json")
    expected = get_session().get_service_model("ecs").operation_model("RegisterTaskDefinition").input_shape
    assert ParamValidator().validate(definition, expected).generate_report() == ""
    (container,) = definition["containerDefinitions"]
    mounted, volumes = {each["sourceVolume"] for each in container["mountPoints"]}, definition["volumes"]
    assert mounted == {volume["name"] for volume in volumes}
    assert container["stopTimeout"] <= 120, "Fargate's limit"


def test_every_worker_has_a_port_of_metrics_and_is_asked_whether_it_is_healthy() -> None:
    """Each installation asks the probe of a worker and its flow run, at the ports that it sets for them."""
    image = (KIT / "docker" / "Dockerfile").read_text()
    assert f"HEALTHCHECK --interval=30s --timeout=20s --start-period=60s CMD {json.dumps(PROBE)}" in image
    compose = parsed(COMPOSE)["services"]["worker"]
    (task,) = parsed(KIT / "ecs" / "task-definition.json")["containerDefinitions"]
    assert task["healthCheck"]["command"] == ["CMD", *PROBE]
    (pod,) = template()[0]["job_manifest"]["spec"]["template"]["spec"]["containers"]
    assert pod["livenessProbe"]["exec"]["command"] == PROBE
    variables = [
        compose["environment"],
        {each["name"]: each["value"] for each in task["environment"]},
        template()[1]["env"]["default"],
    ]
    for found in variables:
        assert found["EXECUTOR_ADAPTER_MONITORING__METRICS_HOST"] == "0.0.0.0"
        assert f"127.0.0.1:{found['EXECUTOR_ADAPTER_MONITORING__METRICS_PORT']}/live" in probe.URLS[1]
    for command in (compose["command"], task["command"]):
        assert command[command.index("--limit") + 1 :] == ["1", "--with-healthcheck"]
    unit = (KIT / "systemd" / "prefect-worker@.service").read_text()
    health = (KIT / "systemd" / "prefect-worker-health@.service").read_text()
    assert "--limit 1 --with-healthcheck\n" in unit
    assert "WEBSERVER_PORT=808%i" in unit
    assert "METRICS_PORT=946%i" in unit
    assert f"={probe.__name__}\n" in health
    assert "http://127.0.0.1:808%i/health http://127.0.0.1:946%i/live" in health
    assert parsed(KIT / "helm" / "worker.yaml")["worker"]["livenessProbe"]["enabled"]


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """Systemd finds no error in the units, apart from programs that are not installed here."""
    systemd_analyze = program("systemd-analyze", "systemd")
    for unit in UNITS:
        text = re.sub(r"^(ExecStart(?:Pre)?=)\S+", r"\1/bin/true", unit.read_text(), flags=re.M)
        (tmp_path / unit.name).write_text(text)
    names = [unit.name.replace("@.", "@1.") for unit in UNITS]
    told = run(systemd_analyze, "verify", "--man=no", *(f"./{name}" for name in names), cwd=tmp_path)
    assert told == ""


@pytest.mark.parametrize("unit", ["prefect-worker@", "prefect-server", "prefect-services"])
def test_systemd_finds_little_exposure(unit: str, tmp_path: Path) -> None:
    """Systemd rates the exposure of each unit that serves below 4 of 10."""
    (copy := tmp_path / f"{unit.rstrip('@')}.service").write_text((KIT / "systemd" / f"{unit}.service").read_text())
    command = [program("systemd-analyze", "systemd"), "security", "--offline=true", "--threshold=40"]
    assert "Overall exposure" in run(*command, f"./{copy.name}", cwd=tmp_path)


def test_a_worker_s_unit_ends_in_order_and_outlives_a_job_that_is_killed() -> None:
    """A stop tells the worker alone, waits, then kills the rest; a job that the kernel kills does not end the unit."""
    text = (KIT / "systemd" / "prefect-worker@.service").read_text()
    for line in ("KillMode=mixed", "TimeoutStopSec=60", "OOMPolicy=continue", "Restart=always", "LimitNOFILE=65536"):
        assert f"\n{line}\n" in text


def test_the_validators_are_there() -> None:
    """What these tests import is installed with the extra dev."""
    assert all(find_spec(name) for name in ("botocore", "prefect_redis", "prometheus_client"))


def test_the_interval_of_heartbeats_is_that_of_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval is known from each variable that Prefect takes it from, the old name too, and in the same order."""
    names = ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "PREFECT_RUNNER_HEARTBEAT_FREQUENCY")
    for given in ({names[1]: "900"}, {names[0]: "60"}, {names[1]: "900", names[0]: "60"}):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert heartbeat_seconds(given) == PrefectSettings().flows.heartbeat_frequency


def test_every_automation_has_a_line_in_the_runbooks() -> None:
    """The runbooks say what to do when an automation of the bootstrap fires."""
    plan = BootstrapPlan(work_pool="local", heartbeat_seconds=30, pending_seconds=90, crashes_rescheduled=2)
    names = [each.name.partition(": ")[2] for each in automations(plan)]
    rows = re.findall(r"^\| (.*?) \|", (ROOT / "docs" / "how-to" / "runbooks.md").read_text(), re.MULTILINE)
    explained = {name for row in rows for name in row.split(", ")}
    assert len(names) == 11
    assert [name for name in names if name not in explained] == []
