"""The one rule that retries."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from executor_adapter import RetryDecision, RetryPolicy, RetryRule
from executor_adapter.job.retry import MAX_GROWN_MEMORY, MAX_RETRY_AFTER_SECONDS, NEVER_RETRIED, decide


def decided(policy: RetryPolicy, code: str = "API_ERROR", attempt: int = 1, crashes: int = 0) -> RetryDecision:
    return decide(policy, code=code, attempt=attempt, crashes=crashes, draw=lambda: 0.5)


def test_delays_grow_up_to_max_delay() -> None:
    policy = RetryPolicy(retry_attempts=6, retry_delay=1.0, max_delay=10.0)
    assert [decided(policy, attempt=n).delay for n in range(1, 7)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_no_retry_follows_the_last_attempt() -> None:
    policy = RetryPolicy(retry_attempts=2)
    assert decided(policy, attempt=2).retry
    assert not decided(policy, attempt=3).retry
    assert not decided(RetryPolicy(retry_attempts=0), code="WORKER_CRASHED", crashes=1).retry


@pytest.mark.parametrize("code", sorted(NEVER_RETRIED))
def test_some_codes_are_never_retried_unless_a_rule_says_so(code: str) -> None:
    assert not decided(RetryPolicy(), code=code).retry
    assert decided(RetryPolicy(rules=(RetryRule(codes=(code,)),)), code=code).retry


def test_the_first_rule_that_matches_wins() -> None:
    rules = (
        RetryRule(codes=("API_ERROR",), retry_delay=5.0, backoff_coefficient=1.0),
        RetryRule(codes=("*",), action="fail"),
    )
    policy = RetryPolicy(rules=rules)
    assert decided(policy, attempt=3).delay == 5.0
    assert not decided(policy, code="NETWORK_ERROR").retry


def test_crashes_have_a_budget_of_their_own_and_end_in_quarantine() -> None:
    policy = RetryPolicy(retry_attempts=9, crash_attempts=1)
    assert decided(policy, code="WORKER_CRASHED", attempt=1, crashes=1).retry
    spent = decided(policy, code="MEMORY_LIMIT", attempt=2, crashes=2)
    assert (spent.retry, spent.quarantine) == (False, True)
    assert decided(policy, code="API_ERROR", attempt=2, crashes=2).retry


def test_a_rule_can_grow_the_memory_limit_and_run_alone() -> None:
    rule = RetryRule(codes=("MEMORY_LIMIT",), memory_factor=2.0, alone=True)
    decision = decided(RetryPolicy(rules=(rule,)), code="MEMORY_LIMIT", crashes=1)
    assert (decision.memory_factor, decision.alone) == (2.0, True)


def test_the_other_side_s_retry_after_is_a_lower_bound() -> None:
    policy = RetryPolicy(retry_delay=1.0, jitter=0.0)
    assert decide(policy, code="RATE_LIMITED", attempt=1, crashes=0, retry_after=30.0).delay == 30.0
    assert decide(policy, code="RATE_LIMITED", attempt=1, crashes=0, retry_after=0.1).delay == 1.0


def test_retry_after_is_heeded_for_a_day_or_for_as_long_as_the_policy_waits_itself() -> None:
    asked = 30 * 86_400.0
    assert RetryPolicy().limit_retry_after(asked) == MAX_RETRY_AFTER_SECONDS
    assert RetryPolicy(max_delay=asked).limit_retry_after(asked) == asked
    assert RetryPolicy(max_delay=10.0).limit_retry_after(3600.0) == 3600.0
    assert RetryPolicy().limit_retry_after(None) == 0.0
    assert decide(RetryPolicy(), code="RATE_LIMITED", attempt=1, crashes=0, retry_after=float("inf")).delay <= 86_400.0


@given(st.floats(0, allow_nan=False, allow_infinity=False), st.floats(0, 1))
def test_every_delay_has_a_date(seconds: float, jitter: float) -> None:
    policy = RetryPolicy(retry_delay=seconds, max_delay=seconds, jitter=jitter)
    delay = decide(policy, code="API_ERROR", attempt=1, crashes=0, retry_after=seconds, draw=lambda: 0.999).delay
    assert datetime.fromtimestamp(time.time() + delay, UTC)


@pytest.mark.parametrize("field", ["retry_delay", "backoff_coefficient", "memory_factor"])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_rule_is_made_of_numbers(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=f"{field}\n"):
        RetryRule(codes=("*",), **{field: value})


def test_a_memory_limit_grows_by_any_factor() -> None:
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
    policy = RetryPolicy(
        retry_attempts=10_000, retry_delay=retry_delay, backoff_coefficient=coefficient, jitter=jitter, max_delay=900
    )
    decision = decide(policy, code="API_ERROR", attempt=attempt, crashes=0, draw=lambda: draw)
    assert 0 <= decision.delay <= 900 * (1 + jitter)


@pytest.mark.parametrize("retry", [1, 1024, 1025, 10**6])
def test_no_delay_stays_none_however_many_retries(retry: int) -> None:
    assert RetryPolicy(retry_delay=0).delay_before(retry) == 0
    assert RetryPolicy().delay_before(retry, RetryRule(codes=("*",), retry_delay=0)) == 0
    assert RetryPolicy(retry_delay=1, max_delay=900).delay_before(10**6) == 900


def test_a_policy_survives_yaml() -> None:
    policy = RetryPolicy(rules=(RetryRule(codes=("API_ERROR",)),))
    assert RetryPolicy.model_validate(policy.model_dump(mode="json")) == policy


def test_delays_can_be_given_one_by_one_and_the_last_is_repeated() -> None:
    policy = RetryPolicy(retry_attempts=5, delays=(1, 2000, 3), jitter=0, max_delay=10)
    assert [decided(policy, attempt=attempt).delay for attempt in (1, 2, 3, 4)] == [1, 2000, 3, 3]
    in_a_rule = RetryPolicy(delays=(7,), jitter=0, rules=(RetryRule(codes=("API_ERROR",), retry_delay=0.5),))
    assert [decided(in_a_rule, attempt=attempt).delay for attempt in (1, 2)] == [0.5, 1.0]
    assert decided(in_a_rule, code="NETWORK_ERROR").delay == 7
