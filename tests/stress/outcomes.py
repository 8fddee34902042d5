"""How the jobs of a plan may end."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.stress.plan import ExecutorPlan, JobPlan


def outcomes(plan: JobPlan, executor: ExecutorPlan, *, cancelled: bool) -> set[str]:
    """Return how a job may end: its status, with its error code unless it completed.

    `cancelled`: whether it, or its executor, may have been told to end early.
    """
    kind = plan.kind.removesuffix("_on_loop")
    allowed = set(_BY_KIND[kind](plan, cancelled)) if kind in _BY_KIND else {"completed"}
    if any(plan.fields.get(name) is not None for name in _CUT_SHORT):
        allowed.add("failed:TIMEOUT_ERROR")
    allowed |= {f"failed:{code}" for name, code in _LIMITS.items() if name in plan.fields}
    if executor.hooks in ("raising before", "raising after"):
        allowed.add("failed:EXECUTION_ERROR")
    if executor.hooks == "own result":
        allowed.add("completed")
    if cancelled or executor.hooks == "cancelling":
        allowed.add("cancelled:CANCELLED")
    return allowed


_CUT_SHORT = {"max_runtime", "soft_timeout", "stall_timeout"}
_LIMITS = {"queue_timeout": "QUEUE_TIMEOUT", "deadline": "DEADLINE_EXCEEDED"}


def _flaky(plan: JobPlan, cancelled: bool) -> set[str]:
    rules = plan.fields.get("retry", {}).get("rules", ())
    is_retried = not any(rule.get("action") == "fail" for rule in rules)
    return _after(plan, _retries(plan) if is_retried else 0, "NETWORK_ERROR", cancelled)


def _count(plan: JobPlan, cancelled: bool) -> set[str]:
    cut_short = _CUT_SHORT & plan.fields.keys()  # An attempt may end before it has counted.
    return _flaky(plan, cancelled) | ({"failed:NETWORK_ERROR"} if cut_short else set())


def _crash(plan: JobPlan, cancelled: bool) -> set[str]:
    crashes = plan.fields.get("retry", {}).get("crash_attempts", 2)
    outcomes = _after(plan, min(_retries(plan), crashes), "WORKER_CRASHED", cancelled)
    cut_short = _CUT_SHORT & plan.fields.keys()  # An attempt that ends before it has crashed counts as no crash.
    return outcomes | (_after(plan, _retries(plan), "WORKER_CRASHED", cancelled) if cut_short else set())


def _retries(plan: JobPlan) -> int:
    number: int = plan.fields.get("retry", {}).get("retry_attempts", plan.fields.get("retry_attempts", 3))
    return number


def _after(plan: JobPlan, retries: int, code: str, cancelled: bool) -> set[str]:
    """Return how a job may end that fails as often as its first argument says."""
    fails = plan.args[0] > retries
    return ({f"failed:{code}"} if fails or cancelled else set()) | (set() if fails else {"completed"})


_Outcomes = Callable[[JobPlan, bool], set[str]]
_BY_KIND: Mapping[str, _Outcomes] = {
    "flaky": _flaky,
    "count_in_checkpoints": _count,
    "crash": _crash,
    "be_rate_limited": lambda plan, cancelled: _after(plan, _retries(plan), "RATE_LIMITED", cancelled),
    "refuse": lambda *_: {"failed:DATA_ERROR"},
    "hang": lambda *_: {"failed:TIMEOUT_ERROR"},
    "return_unpicklable": lambda plan, _: (
        {"failed:SERIALIZATION_ERROR"} if plan.fields["pool"] == "process" else {"completed"}
    ),
    "raise_local_class": lambda *_: {"failed:EXECUTION_ERROR"},
    "exit_as_program": lambda *_: {"failed:EXECUTION_ERROR"},
    "interrupt": lambda *_: {"failed:EXECUTION_ERROR"},
}
