"""Sets up a Prefect server by a plan: it creates what is missing, sets what the plan declares, and says both."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    VariableUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.events import AutomationCore
from prefect.exceptions import ObjectNotFound

from executor_adapter.blocks import JobExecutorBlock
from executor_adapter.config import Settings, load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.prefect.setup.automations import automations, facts, with_all_fields
from executor_adapter.prefect.setup.plan import BootstrapPlan, heartbeat_seconds, tool_limits


class BootstrapOutcome(StrEnum):
    """What became of one thing on the server."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapChange:
    """One thing on the server, and what a bootstrap did about it; in a dry run, what it would do."""

    kind: str
    name: str
    outcome: BootstrapOutcome
    detail: str = ""
    """What differs, as `field: old -> new`."""


def bootstrap(
    plan: BootstrapPlan | None = None, *, settings: Settings | None = None, dry_run: bool = False
) -> list[BootstrapChange]:
    """Set up the Prefect server of the current settings, and return what was done about each thing.

    It creates what is missing, and sets what the plan declares; a second call changes nothing. What the plan does not
    name belongs to people, and stays: the actions of an automation and whether it is enabled, the fields of a block.

    Args:
        plan: what to create; None: the defaults.
        settings: the configuration, for the limits of the tools; None: `load_config()`.
        dry_run: only find out what would be done.

    Raises:
        ConfigurationError: the configuration is wrong, or the work pool is of another type than the plan declares.
        httpx.HTTPError: the server cannot be reached.
    """
    plan = plan or BootstrapPlan()
    settings = settings or load_config()
    with get_client(sync_client=True) as client:
        return list(Bootstrap(client, plan, settings, dry_run).run())


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Creates what a server lacks of a plan, and sets what the plan declares. In a dry run it only reads."""

    client: SyncPrefectClient
    plan: BootstrapPlan
    settings: Settings
    dry_run: bool

    def run(self) -> Iterator[BootstrapChange]:
        """Yield what was done about each thing."""
        yield self._work_pool()
        # In the order of their priorities: the server moves others down to make room for one.
        for name, priority in sorted(self.plan.work_queues.items(), key=lambda item: item[1]):
            yield self._work_queue(name, priority)
        if self.plan.tool_limits:
            for name, limit, decay in tool_limits(self.settings):
                yield self._concurrency_limit(name, {"limit": limit, "slot_decay_per_second": decay})
        for name, value in self.plan.variables.items():
            yield self._variable(name, value)
        if self.plan.executor_block is not None:
            yield self._executor_block(self.plan.executor_block)
        if self.plan.automations:
            longest = self._longest_heartbeat_seconds()
            for wanted in automations(self.plan.model_copy(update={"heartbeat_seconds": longest})):
                yield self._automation(wanted)

    def _settle(
        self,
        kind: str,
        name: str,
        known: Iterable[tuple[str, Any]] | None,
        declared: Mapping[str, Any],
        create: Callable[[], object],
        change: Callable[[], object] = lambda: None,
    ) -> BootstrapChange:
        """Create a thing that is not `known`, or set what is `declared` of one that is; say what."""
        now = dict(known or ())
        # As JSON, in which true is not 1.
        changed = {key: each for key, each in declared.items() if _json(now.get(key)) != _json(each)}
        if known is None:
            outcome, details = BootstrapOutcome.CREATED, [f"{key}: {each}" for key, each in changed.items()]
        else:
            outcome = BootstrapOutcome.CHANGED if changed else BootstrapOutcome.UNCHANGED
            details = [f"{key}: {now.get(key)} -> {each}" for key, each in changed.items()]
        if not self.dry_run and outcome is not BootstrapOutcome.UNCHANGED:
            (create if known is None else change)()
        return BootstrapChange(kind=kind, name=name, outcome=outcome, detail=", ".join(details))

    # --- pools, queues, limits, variables, blocks ---

    def _work_pool(self) -> BootstrapChange:
        name, wanted = self.plan.work_pool, self.plan.work_pool_type
        known = _found(self.client.read_work_pool, name)
        if known is not None and wanted not in (None, known.type):
            raise ConfigurationError(
                f"the work pool {name} is of type {known.type}, and a server changes no pool to another type: "
                f"delete it, give the plan's work_pool another name, or leave work_pool_type={wanted!r} out"
            )
        new = WorkPoolCreate(name=name, type=wanted or "process")
        create = functools.partial(self.client.create_work_pool, new)
        return self._settle("work pool", name, known, {} if known else {"type": new.type}, create)

    def _work_queue(self, name: str, priority: int) -> BootstrapChange:
        client, pool = self.client, self.plan.work_pool
        known = _found(client.read_work_queue_by_name, name, work_pool_name=pool)
        create = functools.partial(client.create_work_queue, name, priority=priority, work_pool_name=pool)
        change = functools.partial(client.update_work_queue, known and known.id, priority=priority)
        return self._settle("work queue", f"{pool}/{name}", known, {"priority": priority}, create, change)

    def _concurrency_limit(self, name: str, declared: dict[str, Any]) -> BootstrapChange:
        client, known = self.client, _found(self.client.read_global_concurrency_limit_by_name, name)
        new, changed = GlobalConcurrencyLimitCreate(name=name, **declared), GlobalConcurrencyLimitUpdate(**declared)
        create = functools.partial(client.create_global_concurrency_limit, new)
        change = functools.partial(client.update_global_concurrency_limit, name, changed)
        return self._settle("concurrency limit", name, known, declared, create, change)

    def _variable(self, name: str, value: Any) -> BootstrapChange:
        known = self.client.read_variable_by_name(name)
        create = functools.partial(self.client.create_variable, VariableCreate(name=name, value=value))
        change = functools.partial(self.client.update_variable, VariableUpdate(name=name, value=value))
        return self._settle("variable", name, known, {"value": value}, create, change)

    def _executor_block(self, name: str) -> BootstrapChange:
        slug = JobExecutorBlock.get_block_type_slug()
        slots = self.settings.executor.max_workers
        # A block has one number; where it has none, the settings count.
        workers = slots if isinstance(slots, int) else None
        known = _found(self.client.read_block_document_by_name, name, slug, include_secrets=False)
        create = functools.partial(JobExecutorBlock(max_workers=workers).save, name)
        first = {} if known else {"max_workers": workers or "as configured"}
        return self._settle("block", f"{slug}/{name}", known, first, create)

    # --- automations ---

    def _longest_heartbeat_seconds(self) -> int:
        """Return the longest interval between two heartbeats of a flow run of the pool, by the plan or a deployment."""
        pool = _found(self.client.read_work_pool, self.plan.work_pool)
        template = {} if pool is None else pool.base_job_template
        common = template.get("variables", {}).get("properties", {}).get("env", {}).get("default") or {}
        of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self.plan.work_pool]))
        longest, read = self.plan.heartbeat_seconds, 0
        while page := self.client.read_deployments(work_pool_filter=of_pool, offset=read):
            environments = [common | (each.job_variables.get("env") or {}) for each in page]
            longest, read = max(longest, *map(heartbeat_seconds, environments)), read + len(page)
        return longest

    def _automation(self, wanted: AutomationCore) -> BootstrapChange:
        client = self.client
        known = next(iter(client.read_automations_by_name(wanted.name)), None)
        if known is None:
            return self._settle("automation", wanted.name, None, {}, lambda: client.create_automation(wanted))
        changed = with_all_fields(known, description=wanted.description, trigger=wanted.trigger)
        change = functools.partial(client.update_automation, known.id, changed)
        return self._settle("automation", wanted.name, facts(known).items(), facts(wanted), lambda: None, change)


_json = functools.partial(json.dumps, sort_keys=True)


def _found(read: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return `read(...)`; None for what the server does not have."""
    try:
        return read(*args, **kwargs)
    except ObjectNotFound:
        return None
