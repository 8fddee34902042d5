"""Retry policies, and the one pure function that decides whether and when an attempt is retried."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import ConfigDict, Field

from executor_adapter import error_codes
from executor_adapter.error_facts import ErrorFacts
from executor_adapter.job.mistakes import Model
from executor_adapter.job.validation import Delay, Factor, Number, Retries

NEVER_RETRIED = error_codes.NEVER_RETRIED | {"MISSING_MODULE", "CANCELLED", "DEADLINE_EXCEEDED"}
"""Error codes that a retry would only repeat. A rule of the user's own may still retry them."""

CRASHES = frozenset({"WORKER_CRASHED", "MEMORY_LIMIT"})
"""Error codes with a budget of their own, since such a job may harm more than itself."""

MAX_RETRY_AFTER_SECONDS = 86_400.0
"""A day: a remote side cannot ask for a longer pause, unless `max_delay` is longer. A header may
hold any number."""

MAX_DELAY_SECONDS = 100 * 365 * 86_400.0
"""A century: longer delays are cut to it, since no calendar and no clock can represent any number."""

MAX_GROWN_MEMORY = 1 << 62
"""Bytes: no memory_limit grows past it."""


class RetryRule(Model):
    """Defines what to do after certain errors. The first rule of a policy that matches wins."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: tuple[str, ...] = Field(min_length=1)
    """The error codes that it applies to, or the names of exception classes, such as "httpx.ReadTimeout" and
    "builtins.ConnectionError", which include their subclasses. "*" is every error."""
    action: Literal["retry", "fail"] = "retry"
    """Whether such an error is retried or fails the job."""
    retry_delay: Delay | None = None
    """Seconds before the first retry; None for the policy's."""
    backoff_coefficient: Factor | None = None
    """The factor by which the delay grows with each retry; None for the policy's."""
    memory_factor: Factor = 1.0
    """The factor by which the job's `memory_limit` grows for the next attempt."""
    alone: bool = False
    """Whether the next attempt runs while nothing else runs in its executor."""

    def matches(self, error: ErrorFacts) -> bool:
        """Return whether the rule applies to an error."""
        return not {"*", error.code, *error.kinds}.isdisjoint(self.codes)


class RetryPolicy(Model):
    """Defines how often and how soon a job is retried.

    The n-th retry waits `retry_delay * backoff_coefficient ** (n - 1)` seconds, at most `max_delay`, plus or minus a
    random share of `jitter`. Where the remote side asks for a longer pause (Retry-After), the retry waits for that: at
    most a day, or `max_delay` where that is longer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    retry_attempts: Retries = 3
    """The number of retries that may follow the first attempt; 0 means one attempt, whatever happens."""
    retry_delay: Delay = 60.0
    """Seconds before the first retry."""
    backoff_coefficient: Factor = 2.0
    """The factor by which the delay grows with each retry."""
    max_delay: Delay = 900.0
    """Seconds that the delay grows to at most."""
    jitter: Number = Field(default=0.1, ge=0, le=1)
    """The share of the delay that is random, from 0 to 1."""
    crash_attempts: Retries = 2
    """The number of retries that may follow WORKER_CRASHED or MEMORY_LIMIT; past it the job is quarantined."""
    delays: tuple[Delay, ...] = ()
    """The delays one by one instead, the last one for all further retries; `max_delay` does not cap them."""
    rules: tuple[RetryRule, ...] = ()
    """Rules for certain errors; the first rule that matches wins over the defaults."""

    def delay_before(self, retry: int, rule: RetryRule | None = None) -> float:
        """Return the seconds before the given retry (from 1), without jitter, as changed by `rule`."""
        first, growth = (None, None) if rule is None else (rule.retry_delay, rule.backoff_coefficient)
        if self.delays and first is None:
            return self.delays[min(retry, len(self.delays)) - 1]
        first = self.retry_delay if first is None else first
        growth = self.backoff_coefficient if growth is None else growth
        try:
            return float(min(first * growth ** (retry - 1), self.max_delay))
        except OverflowError:
            return self.max_delay if first else 0.0

    def limit_retry_after(self, retry_after: float | None) -> float:
        """Return how many of the seconds that the remote side asked to wait a job does wait."""
        return min(retry_after or 0.0, max(MAX_RETRY_AFTER_SECONDS, self.max_delay), _longest_delay())


_attempts_in_tests: int | None = None


def limit_attempts(attempts: int | None) -> int | None:
    """Limit every job to `attempts`, without delays; None removes the limit. Returns the limit before. For tests."""
    global _attempts_in_tests
    before, _attempts_in_tests = _attempts_in_tests, attempts
    return before


def in_force(policy: RetryPolicy) -> RetryPolicy:
    """Return the policy itself, unless `limit_attempts` limits it."""
    if _attempts_in_tests is None:
        return policy
    return policy.model_copy(update={"retry_attempts": min(policy.retry_attempts, _attempts_in_tests - 1)})


def _longest_delay() -> float:
    """Return the seconds that a retry waits at most: none while `limit_attempts` limits every job."""
    return MAX_DELAY_SECONDS if _attempts_in_tests is None else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDecision:
    """Describes whether another attempt follows, when, and what changes for it."""

    retry: bool
    """Whether another attempt follows."""
    delay: float = 0.0
    """Seconds until the next attempt may start."""
    reason: str = ""
    """The reason for the decision, for people."""
    quarantine: bool = False
    """Whether the job used up its crash budget: it must not start again until it is released."""
    memory_factor: float = 1.0
    """The factor by which the job's `memory_limit` grows."""
    alone: bool = False
    """Whether the next attempt runs while nothing else runs in its executor."""

    def memory_limit(self, last: int) -> int:
        """Return the memory limit of the next attempt in bytes, where `last` was that of the last one."""
        return int(min(min(last, MAX_GROWN_MEMORY) * self.memory_factor, MAX_GROWN_MEMORY))


def decide(
    policy: RetryPolicy, *, error: ErrorFacts, attempt: int, crashes: int, draw: Callable[[], float] = random.random
) -> RetryDecision:
    """Decide what follows attempt number `attempt` (from 1), which ended with `error`.

    `crashes` counts the job's crashes, this one included. The delay is at least what the policy allows of the pause
    that the remote side asked for. `draw` returns the jitter's random number in [0, 1).
    """
    code = error.code
    rule = next((rule for rule in policy.rules if rule.matches(error)), None)
    crash_budget_spent = code in CRASHES and crashes > policy.crash_attempts
    if rule is not None and rule.action == "fail":
        return RetryDecision(retry=False, reason=f"a rule makes {code} fail")
    if rule is None and code in NEVER_RETRIED:
        return RetryDecision(retry=False, reason=f"{code} is never retried")
    if attempt > policy.retry_attempts or crash_budget_spent:
        reason = f"{crashes} crashes are more than crash_attempts={policy.crash_attempts}"
        if attempt > policy.retry_attempts:
            reason = f"attempt {attempt} of {policy.retry_attempts + 1} was the last"
        return RetryDecision(retry=False, reason=reason, quarantine=crash_budget_spent)
    delay = policy.delay_before(attempt, rule) * (1.0 + policy.jitter * (2.0 * draw() - 1.0))
    return RetryDecision(
        retry=True,
        delay=min(max(delay, policy.limit_retry_after(error.retry_after)), _longest_delay()),
        reason=f"retry {attempt} of {policy.retry_attempts}",
        memory_factor=1.0 if rule is None else rule.memory_factor,
        alone=rule is not None and rule.alone,
    )
