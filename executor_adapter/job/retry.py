"""Whether and when a failed attempt is followed by another: pure, so that every seam decides alike."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from executor_adapter.job.validation import Delay, Factor, Number, Retries

NEVER_RETRIED = frozenset(
    {"DATA_ERROR", "REQUEST_ERROR", "CONFIGURATION_ERROR", "SERIALIZATION_ERROR", "CANCELLED", "DEADLINE_EXCEEDED"}
)
"""Codes that a retry would only meet again; a rule of the user's own may say otherwise."""

CRASHES = frozenset({"WORKER_CRASHED", "MEMORY_LIMIT"})
"""Codes with a budget of their own, since such a job may harm more than itself."""


LONGEST_RETRY_AFTER = 86_400.0
"""Seconds, a day: the other side may ask for no longer a pause, unless `max_delay` is longer still. Anybody can write
any number into a header."""

LONGEST_DELAY = 100 * 365 * 86_400.0
"""Seconds, a century: what asks for longer waits so long, since no calendar and no clock can hold any number."""

MOST_MEMORY = 1 << 62
"""Bytes past which no memory_limit grows."""


class RetryRule(BaseModel):
    """What to do after certain errors; the first rule that matches wins.

    `codes`: the error codes it is for ("*" is all). `action`: "retry" or "fail". `retry_delay` and
    `backoff_coefficient` replace the policy's. `memory_factor` grows the job's memory_limit for the next attempt;
    `alone` runs the next attempt while nothing else runs in its executor.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: tuple[str, ...] = Field(min_length=1)
    action: Literal["retry", "fail"] = "retry"
    retry_delay: Delay | None = None
    backoff_coefficient: Factor | None = None
    memory_factor: Factor = 1.0
    alone: bool = False

    def matches(self, code: str) -> bool:
        return code in self.codes or "*" in self.codes


class RetryPolicy(BaseModel):
    """How often and how soon: the n-th retry waits `retry_delay * backoff_coefficient ** (n - 1)` seconds, at most
    `max_delay`, give or take a random share of `jitter`. Where the other side asks for a longer pause (Retry-After),
    the retry waits for that: at most LONGEST_RETRY_AFTER, a day, or `max_delay` where that is longer.

    `delays`: given one by one instead, the last for all further retries; `max_delay` does not cap them.
    `crash_attempts`: of the retries, at most so many after WORKER_CRASHED or MEMORY_LIMIT; past it the job is
    quarantined. `retry_attempts=0` means one attempt, whatever happens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    retry_attempts: Retries = 3
    retry_delay: Delay = 60.0
    backoff_coefficient: Factor = 2.0
    max_delay: Delay = 900.0
    jitter: Number = Field(default=0.1, ge=0, le=1)
    crash_attempts: Retries = 2
    delays: tuple[Delay, ...] = ()
    rules: tuple[RetryRule, ...] = ()

    def delay_before(self, retry: int, rule: RetryRule | None = None) -> float:
        """Seconds before the given retry (from 1), without jitter; `rule` may say otherwise."""
        if self.delays and (rule is None or rule.retry_delay is None):
            return self.delays[min(retry, len(self.delays)) - 1]
        first, growth = self.retry_delay, self.backoff_coefficient
        if rule is not None:
            first = first if rule.retry_delay is None else rule.retry_delay
            growth = growth if rule.backoff_coefficient is None else rule.backoff_coefficient
        try:
            return float(min(first * growth ** (retry - 1), self.max_delay))
        except OverflowError:
            return self.max_delay if first else 0.0

    def heeded(self, retry_after: float | None) -> float:
        """Of the seconds that the other side asked to wait, those that a job does wait."""
        asked = 0.0 if retry_after is None else retry_after
        return min(asked, max(LONGEST_RETRY_AFTER, self.max_delay), LONGEST_DELAY)


_attempts_in_tests: int | None = None


def limit_attempts(attempts: int | None) -> int | None:
    """Let no job have more than `attempts`, without delays (None: as its policy says); what held before. For tests."""
    global _attempts_in_tests
    before, _attempts_in_tests = _attempts_in_tests, attempts
    return before


def in_force(policy: RetryPolicy) -> RetryPolicy:
    """The policy itself, but for tests that limit attempts."""
    if _attempts_in_tests is None:
        return policy
    fewer = min(policy.retry_attempts, _attempts_in_tests - 1)
    rules = tuple(rule.model_copy(update={"retry_delay": 0.0}) for rule in policy.rules)
    return policy.model_copy(update={"retry_attempts": fewer, "retry_delay": 0.0, "delays": (), "rules": rules})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryDecision:
    """Whether another attempt follows, when, and under which changed terms."""

    retry: bool
    delay: float = 0.0
    """Seconds until the next attempt may start."""
    reason: str = ""
    quarantine: bool = False
    """The job used up its crash budget: it must not be started again until released."""
    memory_factor: float = 1.0
    alone: bool = False

    def memory_limit(self, now: int) -> int:
        """The memory_limit of the next attempt, in bytes, where that of the last was `now`."""
        return int(min(min(now, MOST_MEMORY) * self.memory_factor, MOST_MEMORY))


def decide(
    policy: RetryPolicy,
    *,
    code: str,
    attempt: int,
    crashes: int,
    retry_after: float | None = None,
    draw: Callable[[], float] = random.random,
) -> RetryDecision:
    """Decide what follows attempt number `attempt` (from 1), which ended with the error code `code`.

    `crashes` counts the job's crashes, this one included. `retry_after` is what the other side asked for, in
    seconds: the delay is no shorter than what the policy heeds of it. `draw` gives the jitter's random number from
    [0, 1).
    """
    rule = next((rule for rule in policy.rules if rule.matches(code)), None)
    crash_budget_spent = code in CRASHES and crashes > policy.crash_attempts
    if rule is not None and rule.action == "fail":
        return RetryDecision(retry=False, reason=f"a rule says that {code} fails")
    if rule is None and code in NEVER_RETRIED:
        return RetryDecision(retry=False, reason=f"{code} is never retried")
    if attempt > policy.retry_attempts:
        return RetryDecision(
            retry=False,
            reason=f"attempt {attempt} of {policy.retry_attempts + 1} was the last",
            quarantine=crash_budget_spent,
        )
    if crash_budget_spent:
        return RetryDecision(
            retry=False,
            reason=f"{crashes} crashes are more than crash_attempts={policy.crash_attempts}",
            quarantine=True,
        )
    delay = policy.delay_before(attempt, rule) * (1.0 + policy.jitter * (2.0 * draw() - 1.0))
    return RetryDecision(
        retry=True,
        delay=min(max(delay, policy.heeded(retry_after)), LONGEST_DELAY),
        reason=f"retry {attempt} of {policy.retry_attempts}",
        memory_factor=1.0 if rule is None else rule.memory_factor,
        alone=rule is not None and rule.alone,
    )
