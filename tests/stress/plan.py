"""Plans: what a stress run does, drawn from its seed alone and told in words.

A plan has programs, which start one after another or beside one another on one store. A program has executors, an
executor has steps: it submits jobs in some way, disturbs them, and ends in one of many ways. Each feature is drawn by
dice of its own, so that rare ones meet, and so that a plan without one of them is otherwise the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.stress import functions

T = TypeVar("T")

Step = tuple[Any, ...]
"""The name of a method of `Run` in `program.py`, and its arguments."""

SHUTDOWNS: dict[str, dict[str, Any]] = {
    "shutdown()": {},
    "shutdown(cancel_futures=True)": {"cancel_futures": True},
    "shutdown(timeout=0)": {"timeout": 0},
    "shutdown(timeout=0.2)": {"timeout": 0.2},
    "shutdown(wait=False)": {"wait": False},
    "shutdown(wait=False, timeout=0.1)": {"wait": False, "timeout": 0.1},
}
"""The arguments of calls of `shutdown`."""

ENDS = (
    *SHUTDOWNS,
    *("with", "with, by an exception", "async with", "stop()"),
    *("shutdown() in two threads", "shutdown() in a callback", "none", "none, and dropped"),
)
CANCELLING = frozenset(end for end in ENDS if any(word in end for word in ("exception", "cancel", "timeout", "stop")))
"""Ends that cancel jobs."""

HOOKS = ("awaiting", "slow", "raising before", "raising after", "twice", "own result", "cancelling", "in a thread")

DEATHS = ("os._exit", "SIGKILL", "SIGTERM", "SIGINT", "sys.exit", "exception")

SHORT_LEASE = 1.5
"""Seconds: a program that is stopped for longer, or a slow machine, loses a lease of this length."""


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """One job: its id, the function in `functions.py` with the arguments after its name, and the fields of Job."""

    name: str
    kind: str
    args: tuple[Any, ...]
    fields: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ExecutorPlan:
    options: dict[str, Any]
    settings: dict[str, Any]
    hooks: str | None
    observers: tuple[str, ...]
    store: str
    """How it gets the store: by its url, by an object of its own, or by one that the program's executors share."""
    jobs: tuple[JobPlan, ...]
    steps: tuple[Step, ...]
    threads: int
    """How many threads share the steps."""
    end: str

    def words(self) -> str:
        kinds = Counter(f"{job.fields['pool']} {job.kind}" for job in self.jobs)
        fields = Counter(name for job in self.jobs for name in job.fields if name != "pool")
        given = self.options | self.settings | {"observers": self.observers, "hooks": self.hooks}
        given["threads"] = self.threads if self.threads > 1 else None
        return "\n".join(
            [
                f"  executor, store by {self.store}, ends by {self.end}: {_shown(given)}",
                f"    {len(self.jobs)} jobs: {_shown(kinds)}",
                f"    fields: {_shown(fields)}",
                f"    steps: {_steps_words(self.steps)}",
            ]
        )


@dataclass(frozen=True, kw_only=True)
class ProgramPlan:
    executors: tuple[ExecutorPlan, ...]
    together: bool
    """Whether its executors run at the same time, each in a thread, or in turn."""
    beside: bool
    """Whether it starts beside the one before it, or after that has ended."""
    pause: float | None
    """When it is stopped (SIGSTOP), in seconds from its start."""
    pause_seconds: float

    @property
    def deaths(self) -> list[str]:
        """How it may die, where it does not end at its end."""
        return [step[1] for each in self.executors for step in each.steps if step[0] == "die"]

    def words(self) -> str:
        how = "together" if self.together else "in turn"
        stop = f", stopped after {self.pause} s for {self.pause_seconds} s" if self.pause else ""
        lines = [f"a program{' beside it' if self.beside else ''}, its executors {how}{stop}"]
        return "\n".join([*lines, *(each.words() for each in self.executors)])


@dataclass(frozen=True, kw_only=True)
class Plan:
    seed: int
    store: str
    """none, memory, sqlite or postgresql."""
    programs: tuple[ProgramPlan, ...]
    onlooker: bool
    """Whether a process beside them opens the store again and again."""
    ends_swept: bool
    """Whether a last program runs what the others have left in the store."""

    @property
    def executors(self) -> list[ExecutorPlan]:
        return [executor for program in self.programs for executor in program.executors]

    @property
    def requeues(self) -> bool:
        """Whether jobs that are ended early may wait in the store for another host."""
        return any(executor.options["requeue_on_shutdown"] for executor in self.executors) or self.loses_leases

    @property
    def loses_leases(self) -> bool:
        """Whether programs may lose their leases, so that others run their jobs once more."""
        return any(executor.settings["lease"] == SHORT_LEASE for executor in self.executors)

    @property
    def is_whole(self) -> bool:
        """Whether each job is run by one host alone, and to its end."""
        return not self.loses_leases and not any(program.deaths for program in self.programs)

    def words(self) -> str:
        also = ["an onlooker"] * self.onlooker + ["a last program that runs what is left"] * self.ends_swept
        lines = [f"seed {self.seed}: store {self.store}{''.join(f', {each}' for each in also)}"]
        return "\n".join([*lines, *(program.words() for program in self.programs)])


class Dice:
    """Draws for one feature of one part of the plan; without the feature, every draw gives the plain value."""

    def __init__(self, seed: str, without: Collection[str]) -> None:
        self._seed = seed
        self.without = without

    def part(self, name: str) -> Dice:
        return Dice(f"{self._seed}/{name}", self.without)

    def of(self, feature: str) -> random.Random:
        return random.Random(f"{self._seed}/{feature}")

    def happens(self, feature: str, chance: float) -> bool:
        return feature not in self.without and self.of(feature).random() < chance

    def pick(self, feature: str, plain: T, others: Sequence[T], chance: float) -> T:
        """Return one of `others` with this chance, else the plain value."""
        dice = self.of(feature)
        return dice.choice(others) if feature not in self.without and dice.random() < chance else plain


@dataclass(kw_only=True)
class _Style:
    """How often the jobs of one executor have each field: in some plans never, in some always."""

    chances: dict[str, float] = field(default_factory=dict)

    @classmethod
    def draw(cls, dice: Dice) -> _Style:
        weights = {name: dice.of(f"style {name}").choice((0.0, 0.0, 0.1, 0.5, 1.0)) for name in _FIELDS}
        return cls(chances=weights)


_FIELDS = (
    *("priority", "tool_name", "dedupe_key", "resources", "max_runtime", "soft_timeout", "queue_timeout", "deadline"),
    *("stall_timeout", "retry_attempts", "retry", "metadata", "memory_limit", "job_type", "keep"),
)


def draw(seed: int, without: Collection[str] = ()) -> Plan:
    """Draw the plan of this seed, without some of the features: see the names that are given to `Dice`."""
    dice = Dice(str(seed), without)
    stores = [kind for kind in ("memory", "sqlite", "sqlite", "sqlite", "postgresql") if kind not in without]
    store = dice.pick("store", "none", stores, 0.85)
    durable = store in ("sqlite", "postgresql")
    count = dice.pick("programs", 1, (2, 2, 3), 0.4) if durable else 1
    lease = SHORT_LEASE if durable and dice.happens("lease", 0.08) else None
    programs = tuple(_program(dice.part(f"program {n}"), n, store, lease) for n in range(count))
    plan = Plan(
        seed=seed,
        store=store,
        programs=programs,
        onlooker=durable and dice.happens("onlooker", 0.25),
        ends_swept=durable and dice.happens("last program", 0.2),
    )
    return dataclasses.replace(plan, ends_swept=plan.ends_swept or plan.requeues or (durable and not plan.is_whole))


def _program(dice: Dice, number: int, store: str, lease: float | None) -> ProgramPlan:
    count = dice.pick("executors", 1, (2, 2, 3), 0.35)
    executors = tuple(_executor(dice.part(f"executor {n}"), f"{number}.{n}", store, lease) for n in range(count))
    return ProgramPlan(
        executors=executors,
        together=count > 1 and dice.happens("together", 0.5),
        beside=number > 0 and dice.happens("beside", 0.6),
        pause=round(dice.of("pause after").random(), 2)
        if dice.happens("pause", 0.1 if lease is None else 0.8)
        else None,
        pause_seconds=0.3 if lease is None else 2 * lease,
    )


def _executor(dice: Dice, name: str, store: str, lease: float | None) -> ExecutorPlan:
    durable = store in ("sqlite", "postgresql")
    hooks = dice.pick("hooks", None, HOOKS, 0.25)
    tools = [f"tool{n}" for n in range(dice.of("number of tools").randint(1, 3))]
    pools = dice.of("pools").choice((("thread",), ("process",), ("coroutine",), ("auto",), ("thread", "process"), _ALL))
    capacity = {"license": dice.of("capacity of").randint(1, 3)} if dice.happens("capacity", 0.5) else None
    spawns = dice.happens("spawn", 0.08)
    jobs = _jobs(dice.part("jobs"), name, pools, tools, capacity, spawns=spawns)
    options: dict[str, Any] = {
        "max_workers": dice.pick(
            "max_workers by pool",
            dice.of("max_workers").choice((1, 2, 2, 4, 6)),
            (None, {"thread": 1, "process": 2, "coroutine": 3}, {"process": 1}),
            0.15,
        ),
        "max_pending": dice.pick("max_pending", None, (1, 2, 5, 20), 0.25),
        "capacity": capacity,
        "tool_limits": _tool_limits(dice, tools) if dice.happens("tool limits", 0.35) else None,
        "queue": dice.pick("queue", "", ("other",), 0.2) if durable else "",
        "requeue_on_shutdown": durable and dice.happens("requeue_on_shutdown", 0.15),
        "initializer": functions.prepare_worker if dice.happens("initializer", 0.1) else None,
    }
    settings: dict[str, Any] = {
        "kill_grace": dice.of("kill_grace").choice((0.0, 0.1, 0.3)),
        "start_method": "spawn" if spawns else None,
        "max_jobs_per_worker": dice.pick("max_jobs_per_worker", None, (1, 3), 0.15),
        "recover_every": dice.pick("recover_every", 10.0, (0.1, 0.5, None), 0.4),
        "pickle_arguments": dice.happens("pickle_arguments", 0.1),
        "lease": lease,
        "metrics_port": 0 if dice.happens("metrics", 0.05) else None,
    }
    observers = ("quiet", "slow", "raising", "cancelling", "submitting", "waiting", "closing")
    return ExecutorPlan(
        options=options,
        settings=settings,
        hooks=hooks,
        observers=tuple(
            each for each in observers if dice.happens(f"observer {each}", 0.03 if each == "closing" else 0.1)
        ),
        store=dice.pick("store by", "its url", ("an object of its own", "a shared object"), 0.4),
        jobs=jobs,
        steps=_steps(dice.part("steps"), jobs, pools, tools, durable),
        threads=dice.pick("threads", 1, (2, 3), 0.15),
        end=dice.pick("end", "with", ENDS, 0.8),
    )


_ALL = ("auto", "thread", "process", "coroutine")


def _tool_limits(dice: Dice, tools: list[str]) -> dict[str, dict[str, Any]]:
    limits: dict[str, dict[str, Any]] = {}
    for tool in tools:
        one = dice.of(f"limit of {tool}")
        match one.choice(("concurrent", "rate", "both", "none")):
            case "concurrent":
                limits[tool] = {"max_concurrent": one.randint(1, 3)}
            case "rate":
                limits[tool] = {"rate": one.choice((30.0, 100.0, 1000.0)), "burst": one.choice((1, 5, 20))}
            case "both":
                limits[tool] = {"max_concurrent": one.randint(1, 3), "rate": one.choice((50.0, 300.0))}
    return limits


# --- jobs ---

_PLAIN = ("answer", "answer", "answer", "nap", "flaky", "report")
_ODD_CALLS = (
    *("refuse", "be_rate_limited", "count_in_checkpoints", "hang", "be_stubborn", "return_unpicklable"),
    *("raise_local_class", "exit_as_program", "interrupt", "log_much", "give_much", "take_much"),
)
_ODD = {
    "thread": (*_ODD_CALLS, "submit_one_more", "wait_for_one_more"),
    "process": (*_ODD_CALLS, "crash", "crash", "leave_process"),
    "coroutine": ("refuse", "hang", "be_stubborn", "submit_one_more", "wait_for_one_more"),
}


def _jobs(
    dice: Dice,
    name: str,
    pools: Sequence[str],
    tools: list[str],
    capacity: dict[str, int] | None,
    *,
    spawns: bool,
) -> tuple[JobPlan, ...]:
    style = _Style.draw(dice)
    if spawns:  # Without a guardian, memory has no limit, and what leaves its worker's session lives on.
        style.chances["memory_limit"] = 0.0
    odd = dice.of("share of odd jobs").choice((0.0, 0.1, 0.3, 0.6))
    count = dice.of("number of jobs").choice((1, 3, 8, 20, 40))
    jobs = [_job(dice.part(f"{n}"), f"j{name}.{n}", style, odd, pools, tools, capacity) for n in range(count)]
    if spawns:
        jobs = [dataclasses.replace(job, kind="answer") if job.kind == "leave_process" else job for job in jobs]
    return tuple(jobs)


def _job(
    dice: Dice,
    name: str,
    style: _Style,
    odd: float,
    pools: Sequence[str],
    tools: list[str],
    capacity: dict[str, int] | None,
) -> JobPlan:
    pool = dice.of("pool").choice(pools)
    runs_as = pool if pool != "auto" else dice.of("runs as").choice(("thread", "coroutine"))
    kind = dice.of("kind").choice(_ODD[runs_as]) if dice.happens("odd jobs", odd) else dice.of("kind").choice(_PLAIN)
    amount = dice.of("arguments")
    args: tuple[Any, ...] = ()
    if kind == "nap":
        args = (amount.choice((0.0, 0.005, 0.03, 0.1)),)
    elif kind in ("flaky", "be_rate_limited", "count_in_checkpoints", "crash"):
        args = (amount.randint(1, 4),)
    elif kind == "report":
        args = (amount.randint(1, 10),)
    elif kind == "take_much":
        args = (" " * 400_000,)
    fields = {"pool": pool} | {
        field: value
        for field in _FIELDS
        if dice.happens(field, style.chances[field])
        and (value := _field(field, dice.of(f"value of {field}"), tools, capacity)) is not None
    }
    return JobPlan(
        name=name, kind=kind + "_on_loop" * (runs_as == "coroutine"), args=args, fields=_fitting(fields, kind, runs_as)
    )


def _field(name: str, dice: random.Random, tools: list[str], capacity: dict[str, int] | None) -> Any:
    match name:
        case "tool_name":
            return dice.choice(tools)
        case "resources":
            return {"CPU": 1} if capacity is None else {"license": dice.randint(1, capacity["license"])}
        case "retry":
            rules = dice.choice(((), ({"codes": ["*"], "alone": True},), _FAILING))
            return {"retry_attempts": dice.randint(0, 3), "crash_attempts": dice.randint(0, 2), "rules": rules}
        case "metadata":
            return {"number": dice.randint(0, 9)}
    return dice.choice(_VALUES[name])


_FAILING = ({"codes": ["NETWORK_ERROR"], "action": "fail"},)
_VALUES: dict[str, Sequence[Any]] = {
    "priority": range(-2, 3),
    "dedupe_key": ("key0", "key1", "key2", "key3"),
    "max_runtime": (None, 0.1, 0.3, 5.0),
    "soft_timeout": (0.05, 0.09),
    "queue_timeout": (0.02, 0.2, 1.0, 30.0),
    "deadline": (0.02, 0.2, 1.0, 30.0),
    "stall_timeout": (0.2, 30.0),
    "retry_attempts": range(4),
    "memory_limit": ("2GiB",),
    "job_type": ("stress",),
    "keep": (True,),
}


def _fitting(fields: dict[str, Any], kind: str, runs_as: str) -> dict[str, Any]:
    """Return the fields that such a job can have, with retries that wait for a moment only."""
    fields = dict(fields)
    if runs_as != "process":
        fields.pop("memory_limit", None)
    if runs_as == "coroutine":
        fields.pop("soft_timeout", None)
    if kind == "hang" and fields.get("max_runtime", 5.0) in (None, 5.0):
        fields["max_runtime"] = 0.3
    if kind == "hang" and fields.get("retry_attempts", 3) == 3:
        fields["retry_attempts"] = 1
    if "retry" in fields:
        fields.pop("retry_attempts", None)
        fields["retry"] |= {"retry_delay": 0.002}
    else:
        fields["retry_delay"] = 0.0 if "priority" in fields else 0.01
    return fields


# --- steps ---


def _steps(
    dice: Dice, jobs: Sequence[JobPlan], pools: Sequence[str], tools: list[str], durable: bool
) -> tuple[Step, ...]:
    steps: list[Step] = [("submit", n) for n in range(len(jobs))]
    if dice.happens("burst", 0.35):
        burst = dice.of("a burst")
        pool = burst.choice([each for each in pools if each != "coroutine"] or ["thread"])
        count, with_tools = burst.choice((10, 60, 120)), burst.random() < 0.7 and "tool_name" not in dice.without
        steps.insert(
            burst.randint(0, len(steps)), ("burst", count, pool, tools if with_tools else [None], burst.random() < 0.5)
        )
    for name, chance in _DISTURBANCES.items():
        if dice.happens(name, chance):
            one = dice.of(f"a {name}")
            for _ in range(one.choice((1, 1, 2, 5))):
                steps.insert(one.randint(0, len(steps)), _disturbance(name, one, len(jobs), pools, tools))
    names = [name for name in _DISTURBANCES if name not in dice.without]
    share = dice.of("waits").choice((0.0, 0.5, 1.0, 1.0))
    steps += [("wait", n) for n in range(len(jobs)) if dice.of(f"wait {n}").random() < share]
    if dice.happens("late disturbances", 0.3):
        one = dice.of("a late disturbance")
        steps += [_disturbance(one.choice(names), one, len(jobs), pools, tools) for _ in range(3)]
    if durable and dice.happens("death", 0.12):
        one = dice.of("a death")
        steps.insert(one.randint(0, len(steps)), ("die", one.choice(DEATHS)))
    return tuple(steps)


_DISTURBANCES = {
    "cancel": 0.3,
    "cancel_future": 0.2,
    "request_cancel": 0.1,
    "resubmit": 0.2,
    "copy": 0.2,
    "callback": 0.2,
    "flush": 0.2,
    "look": 0.2,
    "open_and_close": 0.2,
    "resize": 0.15,
    "sleep": 0.3,
    "change_observers": 0.1,
    "map_some": 0.2,
    "as_executor": 0.1,
    "release": 0.05,
    "drop_garbage": 0.05,
    "bother": 0.1,
    "pause_tool": 0.05,
    "limit_tool": 0.05,
    "await_all": 0.1,
    "recover": 0.1,
    "fork_child": 0.05,
    "shut_down_early": 0.04,
}
"""What is done beside the submitting of jobs, and how often a plan has it."""


def _disturbance(name: str, dice: random.Random, jobs: int, pools: Sequence[str], tools: list[str]) -> Step:
    match name:
        case "cancel" | "cancel_future" | "request_cancel" | "resubmit" | "copy":
            return (name, dice.randrange(jobs))
        case "callback":
            return (
                name,
                dice.randrange(jobs),
                dice.choice(("counting", "raising", "cancelling", "submitting", "slow")),
            )
        case "resize":
            return (name, dice.randint(1, 6))
        case "sleep":
            return (name, dice.choice((0.0, 0.001, 0.02, 0.2)))
        case "map_some":
            count = dice.choice((1, 10, 30))
            return (name, count, dice.choice(pools), dice.random() < 0.5, dice.choice((0, count // 2, count)))
        case "as_executor":
            return (name, dice.choice((1, 10)), dice.choice(pools), dice.random() < 0.5)
        case "pause_tool" | "limit_tool":
            return (name, dice.choice(tools), dice.choice((0.0, 0.05, 0.3)))
        case "await_all":
            return (name, dice.random() < 0.5)
        case _:
            return (name,)


def _shown(given: dict[str, Any] | Counter[str]) -> str:
    return (
        ", ".join(
            f"{name}={getattr(value, '__name__', value)}"
            for name, value in given.items()
            if value not in (None, (), False, "")
        )
        or "-"
    )


def _steps_words(steps: Sequence[Step]) -> str:
    """Return the steps in their order, consecutive ones for each job as one."""
    words: list[str] = []
    for name, group in itertools.groupby(steps, key=lambda step: step[0]):
        several = list(group)
        if name in ("submit", "wait") and len(several) > 1:
            words.append(f"{name}({several[0][1]}..{several[-1][1]})")
        else:
            words += [name if len(step) == 1 else f"{name}({', '.join(map(str, step[1:]))})" for step in several]
    return " ".join(words)
