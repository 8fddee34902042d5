"""Tool shares: gets this executor's shares of limits that hold over all executors of its store.

    supervisor ──► ask(demand)            what the executor holds and needs of a tool
    thread     ──► JobStore.share_tools   one transaction for all tools, only if there is something to write
    thread     ──► RateLimiter.on_share   what it has got, on the supervisor's thread

The thread starts with the first demand. It asks again while the executor waits for something, every WAIT_INTERVAL, and
at once when a program of this machine has freed a slot, though not within MIN_WAKE_INTERVAL of the last time. While
jobs of any tool start, it reads every CONTROLS_INTERVAL what holds for all tools. Otherwise it sleeps.

**When the store is down** what the executor holds stays its own until its lease ends, and it starts jobs within that;
further ones wait. When its lease is lost, another host may have taken over what it held: then nothing more starts until
it has a new lease.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
from collections.abc import Callable
from dataclasses import replace

from executor_adapter.exceptions import ExecutorClosedError
from executor_adapter.persistence.recorder import Recorder
from executor_adapter.store import (
    JobStore,
    LeaseLostError,
    StoreUnavailableError,
    ToolAsk,
    ToolControl,
    ToolShare,
    WakeUpReceiver,
    wake_hosts,
)
from executor_adapter.supervision import Supervisor, ToolDemand

logger = logging.getLogger("executor_adapter.store")

MIN_WAKE_INTERVAL = 0.01
"""Least seconds between two wake-ups that are acted on: any user of the machine may send them."""
WAIT_INTERVAL = 0.05
"""Seconds between two looks for a free slot, while jobs wait for one."""
CONTROLS_INTERVAL = 0.5
"""Seconds between two looks whether a tool was paused, while jobs of any tool start."""
KNOWN_SECONDS = 1.5
"""Seconds for which what was read of a tool is taken to hold; then no job of any tool starts until it is read again."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 5.0
"""Seconds between tries while the store cannot be used; the delay doubles with each."""
REMIND_SECONDS = 60.0
"""Seconds after which it is logged again that jobs wait for a store that cannot be used."""
HOST_TIMEOUT = 30.0
"""Seconds to wait for this executor's lease."""


class _Tool:
    """What the thread knows of one tool."""

    def __init__(self, demand: ToolDemand) -> None:
        self.demand = demand
        self.shares = demand.number
        """The number of shares that the supervisor was sent. A demand of before the last one is not acted upon."""
        self.held = 0
        """Slots that it held when the store was last asked."""
        self.give_up = 0
        self.is_new = True
        self.retry_at = float("inf")
        """The monotonic time at which another start may be free."""

    @property
    def is_current(self) -> bool:
        return self.demand.number == self.shares

    def due_at(self, asked_at: float) -> float:
        """Return the monotonic time at which the store is to be asked next."""
        if not self.is_current:
            return float("inf")  # The supervisor is about to say what it needs now.
        if self.is_new:
            return 0.0
        if self.demand.waits or (self.demand.has_more and self.demand.keep):
            return min(asked_at + WAIT_INTERVAL, self.retry_at)
        return float("inf")


class ToolShares:
    """Implements `supervision.SharedLimits` over a store that `shares_tools`.

    Args:
        store: the store.
        recorder: registers this executor as a host of the store, and keeps its lease.
        supervisor: the executor's.
    """

    def __init__(self, store: JobStore, recorder: Recorder, supervisor: Supervisor) -> None:
        self._store = store
        self._recorder = recorder
        self._supervisor = supervisor
        self._limiter = supervisor.dispatcher.rate_limiter
        self._lock = threading.Lock()
        self._new: dict[str, ToolDemand] = {}
        self._refresh_asked = False
        self._thread: threading.Thread | None = None
        self._closing = False
        self._wake_reader = self._wake_writer = -1
        # The rest is for the thread alone.
        self._tools: dict[str, _Tool] = {}
        self._host_id: str | None = None
        self._receiver: WakeUpReceiver | None = None
        self._selector: selectors.BaseSelector
        self._own_selector: selectors.BaseSelector
        """Waits for this program alone."""
        self._controls: dict[str, ToolControl] = {}
        """What holds for all tools, as it was last read."""
        self._woken_at = -float("inf")
        """When it last acted on a wake-up of another program."""
        self._asked_at = 0.0
        self._read_at = -float("inf")
        self._failed_since: float | None = None
        self._reminded_at = 0.0
        self._retry_delay = MIN_RETRY_DELAY

    # --- on the supervisor's thread ---

    def ask(self, demand: ToolDemand) -> None:
        with self._lock:
            before = self._new.get(demand.tool_name)
            if before is not None and before.close_for > demand.close_for:
                demand = replace(demand, close_for=before.close_for)
            self._new[demand.tool_name] = demand
        self._wake()

    def refresh(self) -> None:
        if not self._refresh_asked:
            self._refresh_asked = True
            self._wake()

    def _wake(self) -> None:
        with self._lock:
            if self._closing:
                return
            if self._thread is None:
                self._wake_reader, self._wake_writer = os.pipe()
                os.set_blocking(self._wake_writer, False)
                self._thread = threading.Thread(target=self._run, name="executor-tools", daemon=True)
                self._thread.start()
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_writer, b"\0")

    def close(self) -> None:
        """Ask for nothing more. What the executor holds is free when the recorder has ended its lease."""
        with self._lock:
            self._closing = True
            if self._thread is None:
                return
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_writer, b"\0")
        self._thread.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    # --- on its own thread ---

    def _run(self) -> None:
        self._selector, self._own_selector = selectors.DefaultSelector(), selectors.DefaultSelector()
        for selector in (self._selector, self._own_selector):
            selector.register(self._wake_reader, selectors.EVENT_READ)
        try:
            while not self._closing:
                self._wait()
                if not self._closing:
                    self._turn()
        finally:
            self._selector.close()
            self._own_selector.close()
            if self._receiver is not None:
                self._receiver.close()

    def _wait(self) -> None:
        """Wait until something is due, or somebody wakes this thread."""
        due, now = self._due_at(), self._supervisor.now()
        listens_at = self._woken_at + MIN_WAKE_INTERVAL
        selector = self._selector
        if now < listens_at:  # A wake-up that comes meanwhile stays in its socket until then.
            due, selector = min(due, listens_at), self._own_selector
        for key, _ in selector.select(None if due == float("inf") else max(0.0, due - now)):
            if key.fd == self._wake_reader:
                os.read(self._wake_reader, 4096)
            elif self._receiver is not None:
                self._receiver.drain()
                self._woken_at = self._supervisor.now()
                self._asked_at = 0.0
                self._read_at = -float("inf")

    def _due_at(self) -> float:
        if self._failed_since is not None:
            return self._asked_at + self._retry_delay
        with self._lock:
            if self._new or self._refresh_asked:
                return 0.0
        due = min((tool.due_at(self._asked_at) for tool in self._tools.values()), default=float("inf"))
        is_used = self._supervisor.now() - self._limiter.used_at < 2 * CONTROLS_INTERVAL
        if due < float("inf") or is_used or self._limiter.held_back():
            due = min(due, max(self._read_at, 0.0) + CONTROLS_INTERVAL)
        return due

    def _turn(self) -> None:
        """Do what is due; where the store cannot be used, say so, and try again later."""
        try:
            self._take_demands()
            self._ask_store()
            self._read_controls()
        except StoreUnavailableError as error:
            self._on_failure(error)
        except LeaseLostError:
            self._on_lease_lost()
        except ExecutorClosedError:
            self._closing = True
        except Exception as error:
            logger.exception("cannot get the shares of tools")
            self._on_failure(error)
        else:
            self._on_success()

    def _take_demands(self) -> None:
        with self._lock:
            new, self._new = self._new, {}
        for name, demand in new.items():
            tool = self._tools.setdefault(name, _Tool(demand))
            if demand.close_for < tool.demand.close_for and tool.is_new:
                demand = replace(demand, close_for=tool.demand.close_for)  # That one was not sent.
            tool.demand, tool.is_new = demand, True

    def _ask_store(self) -> None:
        now = self._supervisor.now()
        due = [tool for tool in self._tools.values() if tool.due_at(self._asked_at) <= now]
        if not due:
            return
        host_id = self._host()
        self._asked_at = now
        only_waits = not any(tool.is_new for tool in due)
        shares = self._store.share_tools(host_id, [_ask_of(tool.demand) for tool in due], look_first=only_waits)
        to_wake: set[str] = set()
        for tool in due:
            share = shares[tool.demand.tool_name]
            if share.held < tool.held:  # Otherwise hosts that wait would wake one another all the time.
                to_wake.update(share.waiting)
            tool.held = share.held
            self._pass_on(tool, share)
        wake_hosts(to_wake)

    def _pass_on(self, tool: _Tool, share: ToolShare) -> None:
        """Let the supervisor know what it has got, if that is anything."""
        demand = tool.demand
        tool.is_new = False
        tool.demand = replace(demand, close_for=0.0)
        tool.retry_at = float("inf") if share.retry_in is None else self._asked_at + share.retry_in
        slots = share.held - demand.keep
        if not (demand.keep or demand.waits):
            del self._tools[demand.tool_name]
        elif slots or share.starts or share.give_up != tool.give_up:
            tool.shares += 1
            tool.give_up = share.give_up
            name = demand.tool_name
            self._call(lambda: self._limiter.on_share(name, slots=slots, starts=share.starts, give_up=share.give_up))

    def _read_controls(self) -> None:
        began = self._supervisor.now()
        if not self._refresh_asked and began < self._read_at + CONTROLS_INTERVAL:
            return
        self._refresh_asked = False
        controls, at = self._store.tool_controls()
        self._read_at = began
        self._send_controls(controls, at, KNOWN_SECONDS - (self._supervisor.now() - began))

    def _send_controls(self, controls: dict[str, ToolControl], at: float, known_for: float) -> None:
        self._controls = controls
        self._call(lambda: self._limiter.on_controls(controls, at, known_for))

    def _host(self) -> str:
        """Return the id of this executor as a host of the store.

        Raises:
            StoreUnavailableError: it cannot be registered now.
            ExecutorClosedError: the executor is shut down.
        """
        if self._host_id is None:
            try:
                host = self._recorder.request(self._recorder.host, may_wait=False).result(HOST_TIMEOUT)
            except TimeoutError:
                raise StoreUnavailableError(f"{self._store.url} has not answered for {HOST_TIMEOUT:.0f} s") from None
            self._host_id = host.host_id
            if self._receiver is not None:
                self._forget_receiver(self._receiver)
            self._receiver = receiver = WakeUpReceiver(host.host_id)
            if (fd := receiver.fileno()) is not None:
                self._selector.register(fd, selectors.EVENT_READ)
        return self._host_id

    def _forget_receiver(self, receiver: WakeUpReceiver) -> None:
        if (fd := receiver.fileno()) is not None:
            self._selector.unregister(fd)
        receiver.close()

    # --- trouble ---

    def _on_lease_lost(self) -> None:
        """Start anew: what this executor held may be another one's by now."""
        logger.warning(
            "the lease on %s was lost, and with it this executor's shares of tools: their jobs wait for new ones",
            self._store.url,
        )
        self._host_id = None
        for tool in self._tools.values():
            tool.shares += 1
            tool.give_up = 0
        self._call(self._limiter.on_lease_lost)
        with contextlib.suppress(ExecutorClosedError):
            self._recorder.request(self._recorder.renew, may_wait=True)

    def _on_failure(self, error: Exception) -> None:
        now = self._supervisor.now()
        self._asked_at = now
        if self._failed_since is None or now - self._reminded_at >= REMIND_SECONDS:
            self._failed_since = now if self._failed_since is None else self._failed_since
            self._reminded_at = now
            logger.error(
                "%s cannot be used: %s: of tools with limits, no more jobs start than this executor holds slots for, "
                "%d jobs wait; pauses of tools are not seen until it can",
                self._store.url,
                error,
                self._limiter.held_back(),
            )
        self._retry_delay = min(2 * self._retry_delay, MAX_RETRY_DELAY)
        # Tools without a limit go on, as jobs without a tool do; a pause that was seen goes on to hold.
        self._send_controls(self._controls, float("inf"), 2 * self._retry_delay + KNOWN_SECONDS)

    def _on_success(self) -> None:
        if self._failed_since is not None:
            seconds = self._supervisor.now() - self._failed_since
            logger.warning("%s can be used again after %.1f s: jobs of tools start again", self._store.url, seconds)
            self._failed_since, self._retry_delay = None, MIN_RETRY_DELAY

    def _call(self, callback: Callable[[], None]) -> None:
        self._supervisor.call_soon(callback)


def _ask_of(demand: ToolDemand) -> ToolAsk:
    return ToolAsk(
        tool_name=demand.tool_name,
        limit=demand.limit,
        keep=demand.keep,
        want=demand.want,
        starts=demand.starts,
        close_for=demand.close_for,
    )
