"""Compares a Prefect server with a plan, and creates or changes what differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    VariableCreate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import WorkPool, WorkQueue
from prefect.events import AutomationCore
from prefect.events.actions import DoNothing, SendNotification
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from executor_adapter.blocks import JobExecutorBlock
from executor_adapter.config import Settings, load_config
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.prefect.setup.automations import (
    FINGERPRINT,
    automations,
    is_edited,
    trigger_facts,
    with_all_fields,
)
from executor_adapter.prefect.setup.changes import BootstrapChange, BootstrapOutcome, compare, different, with_kept
from executor_adapter.prefect.setup.plan import BootstrapPlan, heartbeat_seconds, tool_limits

UNREACHABLE_ERRORS = (httpx.HTTPError,)
"""Exceptions of a server that cannot be reached, or is in trouble."""


def bootstrap(
    plan: BootstrapPlan | None = None, *, settings: Settings | None = None, dry_run: bool = False
) -> list[BootstrapChange]:
    """Set up the Prefect server of the current settings, and return what was done about each thing.

    A second call changes nothing. What people set by hand stays: the value of a variable, a block, the actions of an
    automation, its trigger and whether it is enabled, and everything that the plan does not name.

    Args:
        plan: what to create; None: the defaults.
        settings: the configuration, for the limits of the tools; None: `load_config()`.
        dry_run: only find out what would be done.

    Raises:
        ConfigurationError: the configuration is wrong, or `plan.notify` names no notification block of the server.
        httpx.HTTPError: the server cannot be reached.
    """
    plan = plan or BootstrapPlan()
    settings = settings or load_config()
    with get_client(sync_client=True) as client:
        return list(Bootstrap(client, plan, settings, dry_run=dry_run).run())


def note_on_server() -> str | None:
    """Return what to know where no server is configured: then this machine's embedded one is set up."""
    if get_current_settings().api.url:
        return None
    return "PREFECT_API_URL is not set: this is about the database of this machine, which a server started here uses"


class Bootstrap:
    """Compares one server with a plan. In a dry run it only reads."""

    def __init__(self, client: SyncPrefectClient, plan: BootstrapPlan, settings: Settings, *, dry_run: bool) -> None:
        self._client = client
        self._plan = plan
        self._settings = settings
        self._dry_run = dry_run

    def run(self) -> Iterator[BootstrapChange]:
        """Yield what was done about each thing."""
        notify = self._notification_block()  # First, because a wrong name must leave everything as it is.
        yield self._work_pool()
        yield from self._work_queues()
        if self._plan.tool_limits:
            for name, limit, decay in tool_limits(self._settings):
                yield self._concurrency_limit(name, limit, decay)
        for name, value in self._plan.variables.items():
            yield self._variable(name, value)
        if self._plan.executor_block is not None:
            yield self._executor_block(self._plan.executor_block)
        if self._plan.automations:
            longest = self._longest_heartbeat_seconds()
            for wanted in automations(self._plan.model_copy(update={"heartbeat_seconds": longest}), notify):
                yield self._automation(wanted)

    def _is_due(self, change: BootstrapChange, outcome: BootstrapOutcome) -> bool:
        return change.outcome is outcome and not self._dry_run

    # --- work pool ---

    def _work_pool(self) -> BootstrapChange:
        plan, known = self._plan, self._known_work_pool()
        wanted = {} if plan.work_pool_limit is None else {"concurrency_limit": plan.work_pool_limit}
        if known is None:
            change = compare("work pool", plan.work_pool, None, {"type": plan.work_pool_type} | wanted)
            if self._is_due(change, BootstrapOutcome.CREATED):
                self._client.create_work_pool(WorkPoolCreate(name=plan.work_pool, type=plan.work_pool_type, **wanted))
            return change
        change = compare("work pool", plan.work_pool, known.model_dump(), wanted)
        if self._is_due(change, BootstrapOutcome.CHANGED):
            self._client.update_work_pool(plan.work_pool, WorkPoolUpdate(**wanted))
        if change.outcome is BootstrapOutcome.UNCHANGED and known.type != plan.work_pool_type:
            detail = f"type: {known.type}, not {plan.work_pool_type}"
            return BootstrapChange(kind=change.kind, name=change.name, outcome=BootstrapOutcome.KEPT, detail=detail)
        return change

    def _known_work_pool(self) -> WorkPool | None:
        try:
            return self._client.read_work_pool(self._plan.work_pool)
        except ObjectNotFound:
            return None

    def _work_queues(self) -> Iterator[BootstrapChange]:
        # In the order of their priorities: the server moves others down to make room for one.
        for name, priority in sorted(self._plan.work_queues.items(), key=lambda item: item[1]):
            known = self._known_work_queue(name)
            now = None if known is None else known.model_dump()
            change = compare("work queue", f"{self._plan.work_pool}/{name}", now, {"priority": priority})
            if self._is_due(change, BootstrapOutcome.CREATED):
                self._client.create_work_queue(name, priority=priority, work_pool_name=self._plan.work_pool)
            elif known is not None and self._is_due(change, BootstrapOutcome.CHANGED):
                self._client.update_work_queue(known.id, priority=priority)
            yield change

    def _known_work_queue(self, name: str) -> WorkQueue | None:
        try:
            return self._client.read_work_queue_by_name(name, work_pool_name=self._plan.work_pool)
        except ObjectNotFound:
            return None

    # --- limits, variables, blocks ---

    def _concurrency_limit(self, name: str, limit: int, decay: float) -> BootstrapChange:
        wanted: dict[str, Any] = {"limit": limit, "slot_decay_per_second": decay}
        try:
            known = self._client.read_global_concurrency_limit_by_name(name).model_dump()
        except ObjectNotFound:
            known = None
        change = compare("concurrency limit", name, known, wanted)
        if self._is_due(change, BootstrapOutcome.CREATED):
            self._client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, **wanted))
        elif self._is_due(change, BootstrapOutcome.CHANGED):
            self._client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(**wanted))
        return change

    def _variable(self, name: str, value: Any) -> BootstrapChange:
        known = self._client.read_variable_by_name(name)
        if known is None:
            if not self._dry_run:
                self._client.create_variable(VariableCreate(name=name, value=value))
            return BootstrapChange(
                kind="variable", name=name, outcome=BootstrapOutcome.CREATED, detail=f"value: {value}"
            )
        if known.value == value:
            return BootstrapChange(kind="variable", name=name, outcome=BootstrapOutcome.UNCHANGED)
        detail = f"value: {known.value}, not {value}"
        return BootstrapChange(kind="variable", name=name, outcome=BootstrapOutcome.KEPT, detail=detail)

    def _executor_block(self, name: str) -> BootstrapChange:
        slug = JobExecutorBlock.get_block_type_slug()
        try:
            self._client.read_block_document_by_name(name, slug, include_secrets=False)
        except ObjectNotFound:
            slots = self._settings.executor.max_workers
            # A block has one number; where it has none, the settings count.
            workers = slots if isinstance(slots, int) else None
            if not self._dry_run:
                JobExecutorBlock(max_workers=workers).save(name)
            detail = f"max_workers: {workers or 'as configured'}"
            return BootstrapChange(kind="block", name=f"{slug}/{name}", outcome=BootstrapOutcome.CREATED, detail=detail)
        return BootstrapChange(kind="block", name=f"{slug}/{name}", outcome=BootstrapOutcome.UNCHANGED)

    # --- automations ---

    def _notification_block(self) -> UUID | None:
        if self._plan.notify is None:
            return None
        slug, separator, name = self._plan.notify.partition("/")
        if not separator:
            raise ConfigurationError(
                f"notify: {self._plan.notify!r} is not TYPE/NAME: give slack-webhook/ops, for example"
            )
        try:
            return self._client.read_block_document_by_name(name, slug, include_secrets=False).id
        except ObjectNotFound:
            raise ConfigurationError(
                f"notify: the server has no block {self._plan.notify!r}: create it in the UI, or save it in Python"
            ) from None

    def _longest_heartbeat_seconds(self) -> int:
        """Return the longest interval between two heartbeats of a flow run of the pool, by the plan or a deployment."""
        pool = self._known_work_pool()
        template = {} if pool is None else pool.base_job_template
        common = template.get("variables", {}).get("properties", {}).get("env", {}).get("default") or {}
        of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._plan.work_pool]))
        longest, read = self._plan.heartbeat_seconds, 0
        while page := self._client.read_deployments(work_pool_filter=of_pool, offset=read):
            environments = [common | (each.job_variables.get("env") or {}) for each in page]
            longest, read = max(longest, *map(heartbeat_seconds, environments)), read + len(page)
        return longest

    def _automation(self, wanted: AutomationCore) -> BootstrapChange:
        known = next(iter(self._client.read_automations_by_name(wanted.name)), None)
        if known is None:
            change = BootstrapChange(kind="automation", name=wanted.name, outcome=BootstrapOutcome.CREATED)
            if self._is_due(change, BootstrapOutcome.CREATED):
                self._client.create_automation(wanted)
            return change
        edited = different(trigger_facts(known), trigger_facts(wanted)) if is_edited(known) else []
        if edited:
            kept = {"trigger": known.trigger, "description": known.description, "tags": known.tags}
            wanted = with_all_fields(wanted, **kept)
        change = compare("automation", wanted.name, _facts(known, wanted), _facts(wanted, wanted))
        if self._is_due(change, BootstrapOutcome.CHANGED):
            fields = {"description": wanted.description, "trigger": wanted.trigger, "tags": _merged_tags(known, wanted)}
            self._client.update_automation(known.id, with_all_fields(known, actions=_merged(known, wanted), **fields))
        return with_kept(change, edited)


def _facts(automation: AutomationCore, wanted: AutomationCore) -> dict[str, Any]:
    """Return what the plan decides of an automation: when it fires, and that it sends its message."""
    sends = {block for action in automation.actions if (block := _block_of(action))}
    return {
        "description": automation.description,
        **trigger_facts(automation),
        "tags": [tag for tag in wanted.tags if tag in automation.tags],
        **{f"message to block {block}": block in sends for action in wanted.actions if (block := _block_of(action))},
    }


def _block_of(action: object) -> UUID | None:
    return action.block_document_id if isinstance(action, SendNotification) else None


def _merged(known: AutomationCore, wanted: AutomationCore) -> list[Any]:
    """Return the actions that the automation has, and the message of the plan if that is missing."""
    sends = {_block_of(action) for action in known.actions}
    added = [action for action in wanted.actions if (block := _block_of(action)) and block not in sends]
    kept = [action for action in known.actions if not (added and isinstance(action, DoNothing))]
    return [*kept, *added]


def _merged_tags(known: AutomationCore, wanted: AutomationCore) -> list[str]:
    """Return the tags of the plan after those that people have given the automation."""
    own = [tag for tag in known.tags if not tag.startswith(FINGERPRINT)]
    return list(dict.fromkeys([*own, *wanted.tags]))
