"""Tests how the slots and starts of a tool are shared out among executors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_adapter import ToolLimit
from executor_adapter.store import ToolAsk, ToolControl, ToolShare, ToolUse
from executor_adapter.store.tools import (
    AHEAD_SECONDS,
    ASK_AGAIN_SECONDS,
    FAIR_SECONDS,
    FRESH_SECONDS,
    is_news,
    share_out,
)


class SharedTool:
    """One tool in a store, and the hosts that ask for it; a test moves the clock."""

    def __init__(self, **limit: float) -> None:
        self.limit = ToolLimit(**limit)  # type: ignore[arg-type]
        self.control = ToolControl(tool_name="api")
        self.uses: dict[str, ToolUse] = {}
        self.time = 1000.0

    def ask(self, host: str, *, limit: ToolLimit | None = None, **numbers: int) -> ToolShare:
        """Let a host ask, and store what it gets."""
        self.time += 0.001
        asked = ToolAsk(tool_name="api", limit=limit or self.limit, **numbers)
        mine = self.uses.get(host) or ToolUse(tool_name="api", host_id=host)
        others = [use for name, use in self.uses.items() if name != host]
        share = share_out(asked, self.control, mine, others, now=self.time)
        self.uses[host], self.control = share.use, share.control
        return share

    @property
    def held(self) -> int:
        return sum(use.held for use in self.uses.values())


def test_a_host_gets_what_is_free() -> None:
    """A host gets as many slots as it wants, as far as they are free."""
    tool = SharedTool(max_concurrent=3)
    assert tool.ask("a", want=2).use.held == 2
    assert tool.ask("b", want=2).use.held == 1
    assert tool.ask("c", want=1).use.held == 0


def test_the_host_that_waits_longest_comes_first() -> None:
    """A slot that is given back goes to the host that has waited longest, not to the one that asks first."""
    tool = SharedTool(max_concurrent=1)
    tool.ask("a", want=1)
    for host in ("b", "c"):
        assert tool.ask(host, want=1).use.held == 0
    tool.ask("a", want=1, keep=0)
    assert [tool.ask(host, want=1).use.held for host in ("a", "c", "b")] == [0, 0, 1]


def test_a_host_that_asks_no_more_is_overtaken() -> None:
    """A host that waits and has not asked for FRESH_SECONDS holds up nobody."""
    tool = SharedTool(max_concurrent=1)
    tool.ask("a", want=1)
    tool.ask("stopped", want=1)
    tool.ask("b", want=1)
    tool.time += FRESH_SECONDS
    tool.ask("a", want=0)
    assert tool.ask("b", want=1).use.held == 1


def test_slots_are_given_up_when_others_wait() -> None:
    """Of hosts that hold the same, the one that has had it longest gives a slot up for one that holds fewer."""
    tool = SharedTool(max_concurrent=2)
    tool.ask("a", want=1)
    tool.ask("b", want=1)
    tool.ask("c", want=1)
    assert tool.ask("a", want=2, keep=1).give_up == 0
    tool.time += FAIR_SECONDS
    tool.ask("c", want=1)
    assert tool.ask("b", want=2, keep=1).give_up == 0
    assert tool.ask("a", want=2, keep=1).give_up == 1


def test_hosts_that_hold_the_same_keep_it() -> None:
    """Slots do not change hands among hosts that hold the same number, although each waits for more."""
    tool = SharedTool(max_concurrent=2)
    for host in "ab":
        tool.ask(host, want=1)
    for _ in range(5):
        tool.time += FAIR_SECONDS
        assert [tool.ask(host, want=4, keep=1).give_up for host in "ab"] == [0, 0]


@pytest.mark.parametrize(("needed", "given_up"), [(1, 0), (0, 1)])
def test_a_slot_that_is_not_needed_now_goes_to_any_that_waits(needed: int, given_up: int) -> None:
    """A host that keeps a slot for later gives it up for one that holds more and waits, and is the first to do so."""
    tool = SharedTool(max_concurrent=3)
    tool.ask("a", want=1)
    tool.ask("b", want=2)
    tool.time += FAIR_SECONDS
    assert tool.ask("a", want=needed, keep=1).give_up == 0
    tool.ask("b", want=3, keep=2)
    assert tool.ask("a", want=needed, keep=1).give_up == given_up


def test_a_clock_that_is_set_back_stops_no_starts() -> None:
    """A rate goes on where the clock was set back by 15 minutes."""
    tool = SharedTool(rate=2)
    assert len(tool.ask("a", want=4, starts=4).starts) == 1
    tool.time -= 900
    assert len(tool.ask("a", want=4, starts=4).starts) == 1


def test_a_host_that_asked_a_moment_before_the_last_one_gets_no_more_starts_for_that() -> None:
    """Its time is that before it waited for the tool's row: what lies between adds nothing to the rate."""
    tool = SharedTool(rate=2)
    assert len(tool.ask("a", want=4, starts=4).starts) == 1
    tool.time -= 0.9
    assert len(tool.ask("b", want=4, starts=4).starts) == 0


def test_a_clock_that_is_set_back_keeps_no_slot_from_others() -> None:
    """Where the clock was set back, a host gives a slot up as before, and one that asks again is heard."""
    tool = SharedTool(max_concurrent=2)
    tool.ask("a", want=2)
    tool.ask("stopped", want=1)
    before = tool.ask("b", want=1)
    tool.time -= 900
    assert tool.ask("a", want=2, keep=2).give_up == 0
    waits = tool.ask("b", want=1)
    assert is_news(waits, before.use, tool.control)
    assert waits.use.waits_since == tool.time
    assert tool.ask("a", want=2, keep=2).give_up == 1
    tool.ask("a", want=1, keep=1)
    assert tool.ask("b", want=1).granted == 1


def test_a_waiting_host_with_a_smaller_limit_holds_up_nobody() -> None:
    """A host whose own limit is reached does not keep a free slot from others that may have more."""
    tool = SharedTool(max_concurrent=2)
    tool.ask("a", want=1)
    assert tool.ask("modest", want=1, limit=ToolLimit(max_concurrent=1)).use.held == 0
    assert tool.ask("b", want=1).use.held == 1


def test_nothing_is_shared_out_while_the_tool_is_paused() -> None:
    """While a tool is paused no host gets a slot or a start, and those it keeps stay its own."""
    tool = SharedTool(max_concurrent=2, rate=10.0)
    assert len(tool.ask("a", want=1, starts=1).starts) == 1
    tool.control = replace(tool.control, paused_by="somebody")
    tool.time += 10
    share = tool.ask("a", want=2, keep=1, starts=1)
    assert (share.use.held, share.starts, share.give_up) == (1, (), 0)


def test_a_limit_that_was_set_wins() -> None:
    """A limit that was set in the store holds instead of the host's own; what is held beyond it is given up."""
    tool = SharedTool(max_concurrent=5)
    tool.ask("a", want=3)
    tool.control = replace(tool.control, limit=ToolLimit(max_concurrent=1), limited_by="somebody")
    assert tool.ask("b", want=1).use.held == 0
    assert tool.ask("a", want=3, keep=3).give_up == 2


def test_the_rate_holds_over_all_hosts() -> None:
    """Hosts share one bucket of starts, which is filled at the rate."""
    tool = SharedTool(rate=2.0, burst=2)
    assert [len(tool.ask(host, want=2, starts=2).starts) for host in "ab"] == [2, 0]
    tool.time += 0.5
    assert [len(tool.ask(host, want=2, keep=2, starts=1).starts) for host in "ab"] == [0, 1]
    assert tool.ask("a", want=2, keep=2, starts=1).starts == ()


def test_a_start_that_comes_back_goes_to_the_host_that_waits() -> None:
    """A start that a host could not use is one of the tool again, and no further one: the rate holds."""
    tool = SharedTool(rate=0.01)
    assert len(tool.ask("a", want=1, starts=1).starts) == 1
    assert len(tool.ask("b", want=1, starts=1).starts) == 0
    assert len(tool.ask("a", want=1, keep=1, starts=1, unused=1).starts) == 0
    assert [len(tool.ask(host, want=1, starts=1).starts) for host in ("b", "a", "c")] == [1, 0, 0]


def test_starts_are_shared_out_ahead() -> None:
    """A host gets the starts of the next AHEAD_SECONDS, each to be used in its time; other hosts get later ones."""
    tool = SharedTool(rate=20 / AHEAD_SECONDS, burst=1)
    began = tool.time
    at = []
    for host in "abab":
        starts = tool.ask(host, want=8, starts=8).starts
        at += [round((tool.time - began + seconds) * 20 / AHEAD_SECONDS, 6) for seconds in starts]
        tool.uses[host] = replace(tool.uses[host], waits_since=None)
    first = at[0]
    assert [round(time - first, 6) for time in at] == list(range(len(at)))
    assert 20 <= len(at) <= 22


@given(st.data())
def test_the_limit_is_never_exceeded(data: st.DataObject) -> None:
    """Whatever hosts ask, keep and give back, the slots that they hold are at most as many as the limit."""
    limit = data.draw(st.integers(1, 4))
    tool = SharedTool(max_concurrent=limit)
    for _ in range(data.draw(st.integers(1, 30))):
        host = data.draw(st.sampled_from("abcd"))
        held = tool.uses[host].held if host in tool.uses else 0
        keep = data.draw(st.integers(0, held))
        tool.ask(host, keep=keep, want=keep + data.draw(st.integers(0, 3)))
        tool.time += data.draw(st.sampled_from([0.0, 0.1, FAIR_SECONDS, FRESH_SECONDS]))
        assert tool.held <= limit


@given(st.integers(1, 3), st.integers(2, 5))
def test_every_host_gets_its_turn(limit: int, hosts: int) -> None:
    """Hosts that always want another slot all get some within a few turns, however many there are."""
    tool = SharedTool(max_concurrent=limit)
    got = dict.fromkeys("abcde"[:hosts], 0)
    kept = dict.fromkeys(got, 0)
    for _ in range(20 * hosts):
        tool.time += FAIR_SECONDS / 4
        for host in got:
            share = tool.ask(host, keep=kept[host], want=kept[host] + 1)
            got[host] += share.use.held - kept[host]
            kept[host] = max(0, share.use.held - share.give_up)
    assert min(got.values()) >= 1
    assert tool.held <= limit


NOTHING = ToolUse(tool_name="api", host_id="a")
IDLE = ToolUse(tool_name="api", host_id="a", asked_at=1000.0)
HOLDS, WAITS = replace(IDLE, held=1), replace(IDLE, waits_since=999.0)
LATER = {"asked_at": 1000.0 + ASK_AGAIN_SECONDS}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (NOTHING, IDLE, False),
        (NOTHING, HOLDS, True),
        (NOTHING, WAITS, True),
        (IDLE, HOLDS, True),
        (HOLDS, HOLDS, False),
        (HOLDS, replace(HOLDS, **LATER), False),
        (IDLE, WAITS, True),
        (WAITS, WAITS, False),
        (WAITS, replace(WAITS, **LATER), True),
        (WAITS, IDLE, True),
    ],
)
def test_a_share_is_written_where_it_changes_what_others_get(before: ToolUse, after: ToolUse, expected: bool) -> None:
    """What a host holds, that it waits, and that it waits no more is written at once; that it still waits, in time."""
    control = ToolControl(tool_name="api")
    assert is_news(ToolShare(use=after, control=control), before, control) is expected
