"""Tests of `decide`, the function that decides about every retry."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_adapter import RetryDecision, RetryPolicy, RetryRule
from executor_adapter.error_facts import ErrorFacts, kinds_of
from executor_adapter.exceptions import InvalidJobError, JobTimeoutError
from executor_adapter.job.retry import MAX_GROWN_MEMORY, MAX_RETRY_AFTER_SECONDS, NEVER_RETRIED, decide


def facts(code: str, retry_after: float | None = None) -> ErrorFacts:
    return ErrorFacts(code, ("builtins.Exception",), "no", retry_after=retry_after)


def decide_with(policy: RetryPolicy, code: str = "API_ERROR", attempt: int = 1, crashes: int = 0) -> RetryDecision:
    """Return the decision about an attempt, without random jitter."""
    return decide(policy, error=facts(code), attempt=attempt, crashes=crashes, draw=lambda: 0.5)


def test_delays_grow_up_to_max_delay() -> None:
    """Delays double from retry_delay up to max_delay."""
    policy = RetryPolicy(retry_attempts=6, retry_delay=1.0, max_delay=10.0)
    assert [decide_with(policy, attempt=n).delay for n in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_no_retry_follows_the_last_attempt() -> None:
    """An attempt is not retried once retry_attempts is used up."""
    policy = RetryPolicy(retry_attempts=2)
    assert decide_with(policy, attempt=2).retry
    assert not decide_with(policy, attempt=3).retry
    assert not decide_with(RetryPolicy(retry_attempts=0), code="WORKER_CRASHED", crashes=1).retry


@pytest.mark.parametrize("code", sorted(NEVER_RETRIED))
def test_some_codes_are_retried_only_by_a_rule(code: str) -> None:
    """Codes in NEVER_RETRIED are retried only if a rule names them."""
    assert not decide_with(RetryPolicy(), code=code).retry
    assert decide_with(RetryPolicy(rules=(RetryRule(codes=(code,)),)), code=code).retry


def test_the_first_rule_that_matches_wins() -> None:
    """The first rule that matches the error code decides."""
    rules = (
        RetryRule(codes=("API_ERROR",), retry_delay=5.0, backoff_coefficient=1.0),
        RetryRule(codes=("*",), action="fail"),
    )
    policy = RetryPolicy(rules=rules)
    assert decide_with(policy, attempt=3).delay == 5.0
    assert not decide_with(policy, code="NETWORK_ERROR").retry


class OddError(JobTimeoutError):
    """An exception of a user's own."""


@pytest.mark.parametrize("named", [f"{__name__}.OddError", "executor_adapter.exceptions.JobError", "builtins.OSError"])
def test_a_rule_names_classes_of_errors_and_their_bases(named: str) -> None:
    """A rule that names a class applies to its errors and those of its subclasses, whatever their code."""
    policy = RetryPolicy(rules=(RetryRule(codes=(named,), action="fail"),))
    odd = ErrorFacts("TIMEOUT_ERROR", kinds_of(OddError()), "odd")
    assert not decide(policy, error=odd, attempt=1, crashes=0).retry
    assert decide(policy, error=facts("TIMEOUT_ERROR"), attempt=1, crashes=0).retry


def test_crashes_have_a_budget_of_their_own_and_end_in_quarantine() -> None:
    """Crashes are retried up to crash_attempts times; the next one quarantines the job."""
    policy = RetryPolicy(retry_attempts=9, crash_attempts=1)
    assert decide_with(policy, code="WORKER_CRASHED", attempt=1, crashes=1).retry
    spent = decide_with(policy, code="MEMORY_LIMIT", attempt=2, crashes=2)
    assert (spent.retry, spent.quarantine) == (False, True)
    assert decide_with(policy, code="API_ERROR", attempt=2, crashes=2).retry


def test_a_rule_can_grow_the_memory_limit_and_run_alone() -> None:
    """A rule can raise the memory limit of the retry and make it run alone."""
    rule = RetryRule(codes=("MEMORY_LIMIT",), memory_factor=2.0, alone=True)
    decision = decide_with(RetryPolicy(rules=(rule,)), code="MEMORY_LIMIT", crashes=1)
    assert (decision.memory_factor, decision.alone) == (2.0, True)


def test_retry_after_is_a_lower_bound() -> None:
    """A retry waits at least as long as the server's Retry-After asks."""
    policy = RetryPolicy(retry_delay=1.0, jitter=0.0)
    assert decide(policy, error=facts("RATE_LIMITED", 30.0), attempt=1, crashes=0).delay == 30.0
    assert decide(policy, error=facts("RATE_LIMITED", 0.1), attempt=1, crashes=0).delay == 1.0


def test_retry_after_is_limited_to_a_day_or_max_delay() -> None:
    """Retry-After is limited to a day, or to max_delay if that is longer."""
    asked = 30 * 86_400.0
    assert RetryPolicy().limit_retry_after(asked) == MAX_RETRY_AFTER_SECONDS
    assert RetryPolicy(max_delay=asked).limit_retry_after(asked) == asked
    assert RetryPolicy(max_delay=10.0).limit_retry_after(3600.0) == 3600.0
    assert RetryPolicy().limit_retry_after(None) == 0.0
    assert decide(RetryPolicy(), error=facts("RATE_LIMITED", float("inf")), attempt=1, crashes=0).delay <= 86_400.0


@given(st.floats(0, allow_nan=False, allow_infinity=False), st.floats(0, 1))
def test_the_largest_delay_has_a_date(seconds: float, jitter: float) -> None:
    """The largest possible delay still gives a valid date."""
    policy = RetryPolicy(retry_delay=seconds, max_delay=seconds, jitter=jitter)
    delay = decide(policy, error=facts("API_ERROR", seconds), attempt=1, crashes=0, draw=lambda: 0.999).delay
    assert datetime.fromtimestamp(time.time() + delay, UTC)


@pytest.mark.parametrize("field", ["retry_delay", "backoff_coefficient", "memory_factor"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_rule_rejects_infinity_and_nan(field: str, value: float) -> None:
    """A retry rule rejects infinity and NaN."""
    with pytest.raises(InvalidJobError, match=f"^{field}="):
        RetryRule(codes=("*",), **{field: value})


def test_a_memory_limit_grows_by_any_factor() -> None:
    """A memory limit grows by the rule's factor, up to MAX_GROWN_MEMORY."""
    decision = RetryDecision(retry=True, memory_factor=1e308)
    assert decision.memory_limit(1 << 30) == decision.memory_limit(10**400) == MAX_GROWN_MEMORY
    assert RetryDecision(retry=True, memory_factor=1.5).memory_limit(100) == 150


@given(
    attempt=st.integers(1, 10_000),
    retry_delay=st.floats(0, 1e6),
    coefficient=st.floats(1, 1e6),
    jitter=st.floats(0, 1),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_never_negative_nor_beyond_max_delay_and_its_jitter(
    attempt: int, retry_delay: float, coefficient: float, jitter: float, draw: float
) -> None:
    """A delay is between 0 and max_delay plus its jitter."""
    policy = RetryPolicy(
        retry_attempts=10_000, retry_delay=retry_delay, backoff_coefficient=coefficient, jitter=jitter, max_delay=900
    )
    decision = decide(policy, error=facts("API_ERROR"), attempt=attempt, crashes=0, draw=lambda: draw)
    assert 0 <= decision.delay <= 900 * (1 + jitter)


@pytest.mark.parametrize("retry", [1, 1024, 1025, 10**6])
def test_a_delay_of_zero_stays_zero(retry: int) -> None:
    """A retry_delay of 0 stays 0 for any number of retries."""
    assert RetryPolicy(retry_delay=0).delay_before(retry) == 0
    assert RetryPolicy().delay_before(retry, RetryRule(codes=("*",), retry_delay=0)) == 0
    assert RetryPolicy(retry_delay=1, max_delay=900).delay_before(10**6) == 900


def test_a_policy_survives_yaml() -> None:
    """A policy is equal to itself after it was dumped as JSON and validated again."""
    policy = RetryPolicy(rules=(RetryRule(codes=("API_ERROR",)),))
    assert RetryPolicy.model_validate(policy.model_dump(mode="json")) == policy


def test_delays_can_be_listed_and_the_last_is_repeated() -> None:
    """`delays` gives each delay, and the last one is repeated; a rule's retry_delay replaces them."""
    policy = RetryPolicy(retry_attempts=5, delays=(1, 2000, 3), jitter=0, max_delay=10)
    assert [decide_with(policy, attempt=attempt).delay for attempt in (1, 2, 3, 4)] == [1, 2000, 3, 3]
    in_a_rule = RetryPolicy(delays=(7,), jitter=0, rules=(RetryRule(codes=("API_ERROR",), retry_delay=0.5),))
    assert [decide_with(in_a_rule, attempt=attempt).delay for attempt in (1, 2)] == [0.5, 1.0]
    assert decide_with(in_a_rule, code="NETWORK_ERROR").delay == 7
