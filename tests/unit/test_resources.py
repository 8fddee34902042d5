"""Tests what jobs may ask for, and the ledger that gives it to them."""

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
from executor_adapter.pools import LeasingPool, WorkerPool
from executor_adapter.supervision.resources import Capacity, ResourceLedger
from executor_adapter.supervision.scheduling import Dispatcher, SlotLimits

CAPACITY = Capacity({"CPU": 4, "GPU": 2, "memory": 1 << 30, "license": 3}, ("0", "7"))


def nothing() -> None:
    """Do nothing."""


def has_slot(_: Job) -> bool:
    """Say that each job's pool has a free slot."""
    return True


def no_pool(job: Job) -> WorkerPool:
    """Know no pool: nothing here is leased."""
    raise LookupError(f"there is no pool for {job.job_id}")


def make_ledger(capacity: Capacity = CAPACITY) -> ResourceLedger:
    return ResourceLedger(lambda: capacity, no_pool)


_queued_at = itertools.count()


def enter(ledger: ResourceLedger, priority: int = 0, **resources: Any) -> Job:
    """Return a job that the ledger has checked, as the supervisor admits one."""
    job = Job(function=nothing, resources=resources, priority=priority)
    job.live.resources = ledger.needs_of(job, job.pool)
    job.live.queued_at = float(next(_queued_at))
    return job


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


def test_more_than_there_is_is_refused() -> None:
    """A job that could never start is refused when it is submitted, and the message says what there is."""
    ledger = make_ledger()
    with pytest.raises(InvalidJobError, match=r"needs CPU 8, and this executor has CPU 4: ask for less"):
        enter(ledger, CPU=8)
    with pytest.raises(InvalidJobError, match=r"needs memory 2 GiB, and this executor has memory 1 GiB"):
        enter(ledger, memory="2GiB")
    with pytest.raises(InvalidJobError, match=r"has no licence: did you mean license\?"):
        enter(ledger, licence=1)


def test_the_first_in_line_is_not_overtaken() -> None:
    """A job that needs much starts before smaller ones that came later and need the same; all others go on."""
    ledger = make_ledger()
    running = enter(ledger, CPU=3)
    large, small, other = enter(ledger, CPU=4, license=1), enter(ledger, CPU=1), enter(ledger, license=3)
    assert ledger.start(running)
    assert not ledger.start(large)
    assert not ledger.start(small)
    assert ledger.start(other)  # `large` was not short of a license.
    ledger.release(running)
    assert ledger.take_next(None, has_slot) is None  # Now it is, so that no further one is given away.
    assert not ledger.start(later := enter(ledger, license=1))
    ledger.release(other)
    assert ledger.take_next(None, has_slot) is large
    assert ledger.take_next(None, has_slot) is later
    ledger.release(large)
    assert ledger.take_next(None, has_slot) is small
    assert not ledger.waiting


def test_a_higher_priority_comes_first() -> None:
    """Among waiting jobs the higher priority is first, and no waiting job goes before a ready one with a higher one."""
    ledger = make_ledger()
    running = enter(ledger, CPU=4)
    low, high = enter(ledger, CPU=4), enter(ledger, 5, CPU=4)
    assert ledger.start(running)
    assert not ledger.start(low)
    assert not ledger.start(high)
    ledger.release(running)
    assert ledger.take_next(Job(function=nothing, priority=9), has_slot) is None
    assert ledger.take_next(Job(function=nothing, priority=1), has_slot) is high
    ledger.release(high)
    assert ledger.take_next(Job(function=nothing), has_slot) is low


def test_a_pool_without_a_slot_holds_up_no_other_pool() -> None:
    """Where a waiting job's pool has no free slot, a later one of the same resources in another pool starts."""
    ledger = make_ledger()
    running, first, later = enter(ledger, CPU=4), enter(ledger, CPU=4), enter(ledger, CPU=4)
    first.live.pool, later.live.pool = "process", "thread"
    assert ledger.start(running)
    assert not ledger.start(first)
    assert not ledger.start(later)
    ledger.release(running)
    assert ledger.take_next(None, lambda job: job.live.pool == "thread") is later
    ledger.release(later)
    assert ledger.take_next(None, has_slot) is first


def test_gpus_are_shared_and_told() -> None:
    """Whole GPUs are given to one job each; a share goes where the least is free; ids are those of the machine."""
    ledger = make_ledger()
    half, quarter, whole, two = (enter(ledger, GPU=amount) for amount in (0.5, 0.25, 1, 2))
    assert ledger.start(half)
    assert ledger.start(quarter)
    assert ledger.machine.gpus_of(half) == ledger.machine.gpus_of(quarter) == ("0",)
    assert ledger.start(whole)
    assert ledger.machine.gpus_of(whole) == ("7",)
    assert not ledger.start(two)
    for job in (whole, half):
        ledger.release(job)
    assert ledger.take_next(None, has_slot) is None
    ledger.release(quarter)
    assert ledger.take_next(None, has_slot) is two
    assert ledger.machine.gpus_of(two) == ("0", "7")


def test_no_more_leases_are_wanted_than_their_pool_has_slots(mocker: MockerFixture) -> None:
    """A cluster is asked for as many leases as attempts could start on it, however many could start elsewhere."""
    pool = mocker.create_autospec(LeasingPool, instance=True)
    pool.shapes = mocker.Mock(**{"has_lease.return_value": False})
    dispatcher = Dispatcher(SlotLimits(of_pool={"dask": 2, "thread": 64}), {}, pool_of=lambda _: pool)
    for _ in range(3):
        job = Job(function=nothing, pool="dask", resources={"GPU": 1})
        job.live.pool, job.live.resources = "dask", dispatcher.resources.needs_of(job, "dask")
        dispatcher.push(job)
    dispatcher.run(dispatcher.reserve, lambda job: False)
    assert [call.args[1] for call in pool.shapes.set_demand.call_args_list] == [2]


def test_processors_are_lent() -> None:
    """A job that waits for another one lends its processors, but not what it really holds: memory and GPUs."""
    ledger = make_ledger()
    parent, child = enter(ledger, CPU=4, license=3), enter(ledger, CPU=4)
    greedy = enter(ledger, license=1)
    assert ledger.start(parent)
    assert not ledger.start(child)
    ledger.machine.lend(parent)
    assert ledger.take_next(None, has_slot) is child
    assert not ledger.start(greedy)
    ledger.machine.take_back(parent)
    ledger.release(child)
    ledger.release(parent)
    assert ledger.take_next(None, has_slot) is greedy


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
    ledger = make_ledger()
    running: list[Job] = []
    served = 0
    queue = [enter(ledger, priority, **resources) for resources, priority in wanted]
    for choice in itertools.chain(choices, itertools.repeat(0)):
        if queue and choice % 2:
            job = queue.pop(0)
            running += [job] if ledger.start(job) else []
        elif running:
            ledger.release(running.pop(choice % len(running)))
            served += 1
        elif queue:
            continue_with = queue.pop(0)
            running += [continue_with] if ledger.start(continue_with) else []
        while (waiting := ledger.take_next(None, has_slot)) is not None:
            running.append(waiting)
        for name, amount in CAPACITY.amounts.items():
            assert sum((job.resources or {}).get(name, 0) for job in running) <= amount + 1e-9
        gpus = [(gpu, (job.resources or {})["GPU"]) for job in running for gpu in ledger.machine.gpus_of(job)]
        for gpu in CAPACITY.gpus:
            assert sum(min(amount, 1) * UNITS for held, amount in gpus if held == gpu) <= UNITS + 1e-6
        if not running and not queue:
            break
    assert served == len(wanted)
    assert not ledger.waiting


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
