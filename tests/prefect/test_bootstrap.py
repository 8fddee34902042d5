"""The bootstrap of a Prefect server: it creates what is missing, sets what is declared, and changes nothing twice."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.events import Automation
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.variables import Variable

import deployments.bootstrap
import deployments.serve
from executor_adapter.cli import main
from executor_adapter.config import Settings
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.prefect import (
    BootstrapChange,
    BootstrapOutcome,
    BootstrapPlan,
    JobExecutorBlock,
    bootstrap,
    read_plan,
)
from executor_adapter.prefect.setup.automations import with_all_fields
from tests.servers import ROOT

pytestmark = pytest.mark.usefixtures("prefect_api")

SETTINGS = Settings.model_validate(
    {
        "collection": {"rate_limit_buffer": 0.2},
        "tools": {"radar": {"max_concurrent": 3, "rate": 10, "burst": 5}, "sonar": {"rate": 4, "buffer": 0.5}},
    }
)


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def plan() -> BootstrapPlan:
    """A plan with names of its own; the limits are shared by the tests of this file."""
    name = uuid4().hex[:8]
    return BootstrapPlan(work_pool=f"pool-{name}", executor_block=f"block-{name}", variables={f"days_{name}": 30})


def lost_of(plan: BootstrapPlan) -> str:
    """Return the name of one of the automations of the plan."""
    return f"executor-adapter {plan.work_pool}: flow run without heartbeat"


def automations_of(plan: BootstrapPlan, client: SyncPrefectClient) -> dict[str, Automation]:
    return {each.name: each for each in client.read_automations() if f" {plan.work_pool}: " in each.name}


def outcomes(changes: list[BootstrapChange]) -> Counter[tuple[str, BootstrapOutcome]]:
    return Counter((change.kind, change.outcome) for change in changes)


def test_a_first_run_creates_everything_and_a_second_one_changes_nothing(
    plan: BootstrapPlan, client: SyncPrefectClient
) -> None:
    """The pool, queues by priority, limits without the buffer, variables and blocks are there; then nothing changes."""
    changes = bootstrap(plan, settings=SETTINGS)
    assert {each.outcome for each in changes if each.kind in {"work pool", "work queue", "variable", "block"}} == {
        BootstrapOutcome.CREATED
    }
    assert client.read_work_pool(plan.work_pool).type == "process"
    queues = {each.name: each.priority for each in client.read_work_queues(work_pool_name=plan.work_pool)}
    assert {name: queues[name] for name in plan.work_queues} == plan.work_queues
    limits = {each.name: (each.limit, each.slot_decay_per_second) for each in client.read_global_concurrency_limits()}
    assert limits["tool:radar"] == (3, 0.0)
    assert limits["tool-rate:radar"] == (5, 8.0)
    assert limits["tool-rate:sonar"] == (1, 2.0)
    (variable,) = plan.variables
    assert Variable.get(variable) == 30
    assert JobExecutorBlock.load(str(plan.executor_block)).max_workers == SETTINGS.executor.max_workers
    trigger = client.read_automations_by_name(lost_of(plan))[0].trigger
    assert trigger.within.total_seconds() == 4 * 180
    assert trigger.match_related.model_dump() == {
        "prefect.resource.role": "work-pool",
        "prefect.resource.name": plan.work_pool,
    }

    assert {each.outcome for each in bootstrap(plan, settings=SETTINGS)} == {BootstrapOutcome.UNCHANGED}


def test_a_dry_run_changes_nothing(plan: BootstrapPlan, client: SyncPrefectClient) -> None:
    """A dry run tells the same changes as the run after it, and leaves the server as it is."""
    would = bootstrap(plan, settings=SETTINGS, dry_run=True)
    with pytest.raises(ObjectNotFound):
        client.read_work_pool(plan.work_pool)
    assert bootstrap(plan, settings=SETTINGS) == would


def test_true_is_not_one(plan: BootstrapPlan) -> None:
    """A variable is set where its value is of another kind."""
    (variable,) = plan.variables
    Variable.set(variable, 1)
    changes = bootstrap(plan.model_copy(update={"variables": {variable: True}}), settings=SETTINGS)
    assert [each.detail for each in changes if each.kind == "variable"] == ["value: 1 -> True"]
    assert Variable.get(variable) is True


def test_what_the_plan_declares_is_set_and_the_rest_belongs_to_people(
    plan: BootstrapPlan, client: SyncPrefectClient
) -> None:
    """A variable, a priority, a limit and a trigger are set again, and each change is said; then nothing changes.

    A block, the actions of an automation and whether it is enabled stay as people set them.
    """
    bootstrap(plan, settings=SETTINGS)
    (variable,) = plan.variables
    Variable.set(variable, 7, overwrite=True)
    block = JobExecutorBlock.load(str(plan.executor_block))
    block.max_workers = 99
    block.save(str(plan.executor_block), overwrite=True)
    queue = client.read_work_queue_by_name("pipeline", work_pool_name=plan.work_pool)
    client.update_work_queue(queue.id, priority=77)
    client.update_global_concurrency_limit("tool:radar", GlobalConcurrencyLimitUpdate(limit=50))
    (lost,) = client.read_automations_by_name(lost_of(plan))
    own = {"actions": [{"type": "cancel-flow-run"}], "enabled": False, "description": "edited", "tags": ["ours"]}
    trigger = lost.trigger.model_copy(update={"within": timedelta(hours=1)})
    client.update_automation(lost.id, with_all_fields(lost, **own, trigger=trigger))

    changed = {each.name: each for each in bootstrap(plan, settings=SETTINGS) if each.outcome != "unchanged"}

    assert {name: each.detail for name, each in changed.items() if name != lost_of(plan)} == {
        variable: "value: 7 -> 30",
        f"{plan.work_pool}/pipeline": "priority: 77 -> 3",
        "tool:radar": "limit: 50 -> 3",
    }
    assert {each.outcome for each in changed.values()} == {BootstrapOutcome.CHANGED}
    assert changed[lost_of(plan)].detail.startswith("description: edited -> ")
    assert changed[lost_of(plan)].detail.endswith("within: 3600.0 -> 720.0")
    assert Variable.get(variable) == 30
    assert JobExecutorBlock.load(str(plan.executor_block)).max_workers == 99
    assert client.read_work_queue_by_name("pipeline", work_pool_name=plan.work_pool).priority == 3
    (lost,) = client.read_automations_by_name(lost_of(plan))
    assert lost.trigger.within == timedelta(seconds=720)
    assert ([each.type for each in lost.actions], lost.enabled, lost.tags) == (["cancel-flow-run"], False, ["ours"])
    assert {each.outcome for each in bootstrap(plan, settings=SETTINGS)} == {BootstrapOutcome.UNCHANGED}
    client.delete_automation(lost.id)


def test_the_longest_heartbeat_of_the_pool_counts(plan: BootstrapPlan, client: SyncPrefectClient) -> None:
    """A deployment of the pool with a longer interval of heartbeats than the plan says prolongs the wait for them."""
    plan = plan.model_copy(update={"heartbeat_seconds": 30})
    bootstrap(plan, settings=SETTINGS)
    flow_id = client.create_flow_from_name("another team's")

    def wait_with(name: str, **variables: str) -> float:
        env = {"env": variables}
        client.create_deployment(flow_id, name, work_pool_name=plan.work_pool, job_variables=env)
        bootstrap(plan, settings=SETTINGS)
        return float(client.read_automations_by_name(lost_of(plan))[0].trigger.within.total_seconds())

    assert client.read_automations_by_name(lost_of(plan))[0].trigger.within.total_seconds() == 120
    assert wait_with("slower", PREFECT_FLOWS_HEARTBEAT_FREQUENCY="60") == 240
    assert wait_with("default") == 720


def test_two_plans_on_one_server_leave_each_other_alone(plan: BootstrapPlan, client: SyncPrefectClient) -> None:
    """The bootstrap of another pool changes no automation and no queue of the first one, whatever its plan says."""
    other = plan.model_copy(
        update={
            "work_pool": f"{plan.work_pool}-2",  # Its name begins like the first one's.
            "work_queues": {"pipeline": 1},
            "heartbeat_seconds": 600,
            "crashes_rescheduled": 5,
            "pending_seconds": 60,
        }
    )
    bootstrap(plan, settings=SETTINGS)
    mine, queues = automations_of(plan, client), client.read_work_queues(work_pool_name=plan.work_pool)
    changes = bootstrap(other, settings=SETTINGS)
    assert outcomes(changes)["automation", BootstrapOutcome.CREATED] == 11
    assert automations_of(plan, client) == mine
    assert {each.name: each.priority for each in client.read_work_queues(work_pool_name=plan.work_pool)} == {
        each.name: each.priority for each in queues
    }
    for each in (plan, other):
        assert {change.outcome for change in bootstrap(each, settings=SETTINGS)} == {BootstrapOutcome.UNCHANGED}


def test_a_pool_of_another_type_is_refused_in_words(plan: BootstrapPlan, client: SyncPrefectClient) -> None:
    """A server changes no pool to another type: a plan that declares one is refused, before anything changes."""
    bootstrap(plan, settings=SETTINGS)
    docker = plan.model_copy(update={"work_pool_type": "docker", "work_queues": {"new": 9}})
    with pytest.raises(ConfigurationError, match=f"the work pool {plan.work_pool} is of type process.*leave work_pool"):
        bootstrap(docker, settings=SETTINGS)
    assert "new" not in {each.name for each in client.read_work_queues(work_pool_name=plan.work_pool)}


def test_a_wrong_plan_is_refused_in_words(tmp_path: Path) -> None:
    """An unknown key, a wrong value and a file that is not there are refused, with the file and the key."""
    file = tmp_path / "bootstrap.yaml"
    file.write_text("work_queues: {collection: 0}")
    with pytest.raises(ConfigurationError, match=r"bootstrap.yaml: work_queues.collection: Input should be greater"):
        read_plan(file)
    file.write_text("workpool: local")
    with pytest.raises(ConfigurationError, match=r"bootstrap.yaml: workpool: Extra inputs are not permitted"):
        read_plan(file)
    file.write_text("variables: {since: 2024-01-01}")
    with pytest.raises(
        ConfigurationError, match=r"bootstrap.yaml: variables.since.*: input was not a valid JSON value"
    ):
        read_plan(file)
    with pytest.raises(ConfigurationError, match=r"nothing.yaml: cannot be read"):
        read_plan(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("variables: {'Days to keep': 30}", "variables.* must only contain lowercase letters"),
        (f"variables: {{days: {'x' * 5_000}}}", "variables.days.* must be less than 5000 characters"),
        ("executor_block: my block", "executor_block: .* must only contain lowercase letters"),
        ("work_pool: a/b", "work_pool: String should match pattern"),
        ("work_queues: {50%: 1}", "work_queues.*: String should match pattern"),
    ],
)
def test_what_the_server_would_refuse_is_refused_before_anything_is_created(
    tmp_path: Path, plan: str, message: str
) -> None:
    """A name or a value that the server does not take is refused with the plan, and not half way through it."""
    file = tmp_path / "bootstrap.yaml"
    file.write_text(plan)
    with pytest.raises(ConfigurationError, match=message):
        read_plan(file)


def test_the_plan_of_this_projects_deployments_is_valid() -> None:
    """deployments/bootstrap.yaml is a plan, for the interval of heartbeats that the deployments set."""
    assert read_plan(ROOT / "deployments" / "bootstrap.yaml").heartbeat_seconds == 30


def test_the_command_prints_what_it_did(
    plan: BootstrapPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints a line for each thing; with --dry-run what it would do."""
    file = tmp_path / "bootstrap.yaml"
    file.write_text(f"work_pool: {plan.work_pool}\nautomations: false\nexecutor_block: null\ntool_limits: false\n")
    for flags, said in ((["--dry-run"], "would be created"), ([], "created"), ([], "unchanged")):
        with pytest.raises(SystemExit) as ended:
            main(["prefect", "bootstrap", "--file", str(file), *flags])
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert ended.value.code == 0
        assert [
            (line[:3], " ".join(line[3:-2] or line[3:])) for line in lines if f"{plan.work_pool}/pipeline" in line
        ] == [(["work", "queue", f"{plan.work_pool}/pipeline"], said)]


@pytest.mark.parametrize("script", [deployments.bootstrap, deployments.serve])
def test_the_scripts_say_that_the_server_is_away(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`deployments/bootstrap.py` and `serve.py` say in one line that no server answers, and what to do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", sys.path.copy())
    away = {PREFECT_API_URL: "http://127.0.0.1:1/api", PREFECT_CLIENT_MAX_RETRIES: 0}
    with temporary_settings(away), pytest.raises(SystemExit, match=r"does not answer .*: start it, or set PREFECT_API"):
        script.main()


def test_served_deployments_with_different_environments_are_refused() -> None:
    """Two deployments that set one variable differently cannot run in one process: the message says which."""
    entries = [{"name": name, "work_pool": {"job_variables": {"env": {"LEVEL": name}}}} for name in ("first", "second")]
    with pytest.raises(SystemExit, match=r"second: job_variables.env.LEVEL is second, and first in another deployment"):
        deployments.serve.environment(entries)
