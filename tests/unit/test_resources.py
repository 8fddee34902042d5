"""Tests what jobs may ask for, and the order in which the dispatcher gives it to them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pytest_mock import MockerFixture

from executor_adapter import Job, JobExecutor
from executor_adapter.config import Settings, load_config
from executor_adapter.exceptions import InvalidJobError
from executor_adapter.executor.defaults import read_capacity
from executor_adapter.job import UNITS
from executor_adapter.pools.base import LeasingPool
from executor_adapter.supervision.resources import Capacity
from executor_adapter.supervision.scheduling import SlotLimits
from tests.insides import make_dispatcher

CAPACITY = Capacity({"CPU": 4, "GPU": 2, "memory": 1 << 30, "license": 3}, ("0", "7"))


def nothing() -> None:
    """Do nothing."""


class Allotments:
    """A dispatcher with slots for all jobs, which starts what has its resources; records what runs, in order."""

    def __init__(self, limits: SlotLimits | None = None) -> None:
        self.dispatcher = make_dispatcher(limits or SlotLimits(), CAPACITY)
        self.machine = self.dispatcher.resources.machine
        self.running: list[Job] = []
        self._queued_at = itertools.count()

    def push(self, priority: int = 0, pool: str = "thread", **resources: Any) -> Job:
        """Queue a job that was checked, as the supervisor admits one."""
        job = Job(function=nothing, resources=resources, priority=priority)
        job.live.resources = self.dispatcher.resources.needs_of(job, pool)
        job.live.pool, job.live.queued_at = pool, float(next(self._queued_at))
        self.dispatcher.push(job)
        self.turn()
        return job

    def turn(self) -> None:
        """Start what may start."""
        self.dispatcher.run(self._start, lambda job: False)

    def _start(self, job: Job) -> None:
        self.dispatcher.reserve(job)
        self.running.append(job)

    def end(self, *jobs: Job) -> None:
        """Let these end, then start what may start."""
        for job in jobs:
            self.running.remove(job)
            self.dispatcher.unreserve(job)
            self.dispatcher.attempt_ended(job)
        self.turn()

    @property
    def waiting(self) -> int:
        """How many jobs wait for resources."""
        return self.dispatcher.waiting_for_resources()


@pytest.fixture
def allotments() -> Allotments:
    return Allotments()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"CPU": 2}, {"CPU": 2}),
        ({"GPU": 0.25}, {"GPU": 0.25}),
        ({"memory": "4GiB"}, {"memory": 4 << 30}),
        ({"license": 1.0}, {"license": 1}),
        ({}, None),
        (None, None),
    ],
)
def test_what_a_job_needs_is_kept_as_numbers(given: Any, kept: Any) -> None:
    """Sizes become bytes, whole numbers whole, and nothing becomes None."""
    assert Job(function=nothing, resources=given).resources == kept


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cpu": 2}, "there is no resource 'cpu': did you mean CPU?"),
        ({"Memory": "1GiB"}, "did you mean memory?"),
        ({"CPU": 0}, "'CPU': 0 is not an amount: pass a number above 0, or leave CPU out"),
        ({"CPU": -1}, "'CPU': -1 is not an amount"),
        ({"CPU": "two"}, "'CPU': 'two' is not an amount"),
        ({"CPU": True}, "'CPU': True is not an amount"),
        ({"license": float("inf")}, "'license': inf is not an amount"),
        ({"GPU": 1.5}, "'GPU': 1.5 is no share of one GPU: pass a whole number, or less than 1"),
        ({"memory": "4 gigs"}, "'4 gigs' is not a size"),
        ({"": 1}, "'' does not name a resource"),
        (3, "must be names and amounts"),
    ],
)
def test_what_could_never_be_meant_is_refused(given: Any, words: str) -> None:
    """A wrong name or amount is named, with the way out, in one line."""
    with pytest.raises(InvalidJobError) as refusal:
        Job(function=nothing, resources=given)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_more_than_there_is_is_refused(allotments: Allotments) -> None:
    """A job that could never start is refused when it is submitted, and the message says what there is."""
    with pytest.raises(InvalidJobError, match=r"needs CPU 8, and this executor has CPU 4: ask for less"):
        allotments.push(CPU=8)
    with pytest.raises(InvalidJobError, match=r"needs memory 2 GiB, and this executor has memory 1 GiB"):
        allotments.push(memory="2GiB")
    with pytest.raises(InvalidJobError, match=r"has no licence: did you mean license\?"):
        allotments.push(licence=1)


def test_the_first_in_line_is_not_overtaken(allotments: Allotments) -> None:
    """A job that needs much starts before smaller ones that came later and need the same; all others go on."""
    first = allotments.push(CPU=3)
    large, small, other = allotments.push(CPU=4, license=1), allotments.push(CPU=1), allotments.push(license=3)
    assert allotments.running == [first, other]  # `large` was not short of a license.
    allotments.end(first)
    later = allotments.push(license=1)  # Now it is, so that no further one is given away.
    assert (allotments.running, allotments.waiting) == ([other], 3)
    allotments.end(other)
    assert allotments.running == [large, later]
    allotments.end(large)
    assert (allotments.running, allotments.waiting) == ([later, small], 0)


def test_a_higher_priority_comes_first(allotments: Allotments) -> None:
    """Among waiting jobs the higher priority is first, also where it came later and needs something else."""
    first = allotments.push(CPU=4)
    low, high = allotments.push(CPU=4), allotments.push(5, CPU=3)
    assert allotments.running == [first]
    allotments.end(first)
    assert allotments.running == [high]
    allotments.end(high)
    assert allotments.running == [low]


def test_what_a_start_that_failed_has_freed_is_given_to_others(allotments: Allotments) -> None:
    """A job that was tried in vain starts in the same turn, where the job that has what it needs does not begin."""
    holder = allotments.push(CPU=3)
    large = allotments.push(CPU=2, license=3)
    assert allotments.running == [holder]
    failing = Job(function=nothing, resources={"GPU": 1}, priority=-1)
    failing.live.pool, failing.live.resources = "thread", allotments.dispatcher.resources.needs_of(failing, "thread")
    allotments.dispatcher.push(failing)

    def start(job: Job) -> None:
        if job is failing:  # As where its attempt cannot be made; meanwhile the one before it has ended.
            allotments.dispatcher.attempt_ended(holder)
            allotments.dispatcher.attempt_ended(job)
        else:
            allotments.running.append(job)

    allotments.dispatcher.run(start, lambda job: False)
    assert allotments.running == [holder, large]


def test_a_pool_without_a_slot_holds_up_no_other_pool() -> None:
    """Where a waiting job's pool has no free slot, a later one of the same resources in another pool starts."""
    allotments = Allotments(SlotLimits(of_pool={"process": 1, "thread": 9}))
    holder = allotments.push(pool="process", license=1)
    first, later = allotments.push(pool="process", CPU=4), allotments.push(pool="thread", CPU=4)
    assert allotments.running == [holder, later]
    allotments.end(holder)
    assert allotments.running == [later]
    allotments.end(later)
    assert allotments.running == [first]


def test_gpus_are_shared_and_told(allotments: Allotments) -> None:
    """Whole GPUs are given to one job each; a share goes where the least is free; ids are those of the machine."""
    half, quarter, whole, two = (allotments.push(GPU=amount) for amount in (0.5, 0.25, 1, 2))
    machine = allotments.machine
    assert machine.gpus_of(half) == machine.gpus_of(quarter) == ("0",)
    assert machine.gpus_of(whole) == ("7",)
    allotments.end(whole, half)
    assert allotments.running == [quarter]
    allotments.end(quarter)
    assert allotments.running == [two]
    assert machine.gpus_of(two) == ("0", "7")


def test_no_more_leases_are_wanted_than_their_pool_has_slots(mocker: MockerFixture) -> None:
    """A cluster is asked for as many leases as attempts could start on it, however many could start elsewhere."""
    pool = mocker.create_autospec(LeasingPool, instance=True)
    pool.shapes = mocker.Mock(**{"has_lease.return_value": False})
    dispatcher = make_dispatcher(SlotLimits(of_pool={"dask": 2, "thread": 64}), pool_of=lambda _: pool)
    for _ in range(3):
        job = Job(function=nothing, pool="dask", resources={"GPU": 1})
        job.live.pool, job.live.resources = "dask", dispatcher.resources.needs_of(job, "dask")
        dispatcher.push(job)
    dispatcher.run(dispatcher.reserve, lambda job: False)
    assert [call.args[1] for call in pool.shapes.set_demand.call_args_list] == [2]


def test_processors_are_lent(allotments: Allotments) -> None:
    """A job that waits for another one lends its processors, not what it really holds, and only for as long as that."""
    parent, child = allotments.push(CPU=4, license=3), allotments.push(CPU=4)
    assert allotments.running == [parent]
    allotments.machine.lend(parent)
    greedy, later = allotments.push(license=1), allotments.push(CPU=1)
    assert allotments.running == [parent, child]
    allotments.machine.take_back(parent)
    allotments.end(child)
    assert allotments.running == [parent]
    allotments.end(parent)
    assert allotments.running == [greedy, later]


amounts = st.dictionaries(
    st.sampled_from(["CPU", "GPU", "license"]), st.sampled_from([0.1, 0.3, 0.7, 1, 2]), min_size=1, max_size=3
)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(amounts, st.integers(0, 2)), min_size=1, max_size=25),
    st.lists(st.integers(0, 100), min_size=60, max_size=60),
)
def test_never_oversubscribed_and_all_are_served(
    wanted: list[tuple[dict[str, float], int]], choices: list[int]
) -> None:
    """Whatever comes and ends in whatever order: the sums never exceed the capacity, and every job gets its turn."""
    allotments = Allotments()
    running, queue, served = allotments.running, list(wanted), 0
    for choice in itertools.chain(choices, itertools.repeat(0)):
        if queue and (choice % 2 or not running):
            resources, priority = queue.pop(0)
            allotments.push(priority, **resources)
        elif running:
            allotments.end(running[choice % len(running)])
            served += 1
        for name, amount in CAPACITY.amounts.items():
            assert sum((job.resources or {}).get(name, 0) for job in running) <= amount + 1e-9
        gpus = [(gpu, (job.resources or {})["GPU"]) for job in running for gpu in allotments.machine.gpus_of(job)]
        for gpu in CAPACITY.gpus:
            assert sum(min(amount, 1) * UNITS for held, amount in gpus if held == gpu) <= UNITS + 1e-6
        if not running and not queue:
            break
    assert served == len(wanted)
    assert not allotments.waiting


def test_the_machine_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without settings an executor has the processors, the memory and the GPUs that this process may use."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-a1,-1,5")
    capacity = read_capacity(Settings(), None)
    assert capacity.gpus == ("3", "GPU-a1")
    assert capacity.amounts["GPU"] == 2
    assert capacity.amounts["CPU"] >= 1
    assert capacity.amounts["memory"] > 1 << 28


def test_settings_and_arguments_replace_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`executor.defaults` wins over the machine, and the executor's own argument over both."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "config.yaml").write_text("executor: {capacity: {CPU: 8, memory: 2GiB, license: 1}}")
    config = load_config(tmp_path / "config.yaml")
    capacity = read_capacity(config, {"GPU": 3, "license": 2})
    assert {name: capacity.amounts[name] for name in ("CPU", "GPU", "license")} == {"CPU": 8, "GPU": 3, "license": 2}
    assert capacity.amounts["memory"] == 2 << 30
    assert capacity.gpus == ("0", "1", "2")


def test_a_wrong_capacity_is_refused() -> None:
    """A capacity that could never be meant is refused where it is given, in settings and as an argument."""
    with pytest.raises(ValueError, match=r"capacity: there is no resource 'gpu': did you mean GPU\?"):
        JobExecutor(capacity={"gpu": 1})
    with pytest.raises(ValueError, match=r"capacity: 'GPU': 0\.5 is not a number of GPUs"):
        JobExecutor(capacity={"GPU": 0.5})
    with pytest.raises(ValidationError, match="'CPU': -1 is not an amount"):
        Settings.model_validate({"executor": {"capacity": {"CPU": -1}}})
