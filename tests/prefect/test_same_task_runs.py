"""What is made for a task run by a shorter way than Prefect's is what Prefect makes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from prefect import flow, tags, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.filesystems import LocalFileSystem
from prefect.futures import wait
from prefect.results import ResultStore  # type: ignore[attr-defined]  # They are meant to be used.
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from executor_adapter.prefect import JobTaskRunner
from executor_adapter.prefect.engine.task_runs import JobResultStore

VARYING = {
    *{"id", "dynamic_key", "name", "state_id", "state", "created", "updated", "expected_start_time", "start_time"},
    *{"end_time", "total_run_time", "labels", "task_inputs"},
}
"""Fields in which two runs of the same call differ. The inputs are compared by the positions of the task runs."""


@task
def value(given: Any = 1) -> Any:
    """Return the argument."""
    return given


@task(retries=2, retry_delay_seconds=0, tags=["own"], version="7")
def with_options(first: Any, /, *rest: Any, key: Any = None) -> str:
    """Return a text that is the result of this task alone."""
    return f"{first} {rest} {key}"


@task(task_run_name="named {given}")
def named(given: str) -> str:
    """Return the argument."""
    return given


def unchanged(number: int) -> int:
    """Return the argument."""
    return number


def submit_all() -> list[Any]:
    """Submit tasks with all that the record of a task run shows of its call.

    No object is the result of two tasks: Prefect's own runner looks up later than ours whose result an argument is.
    """
    first = value.submit(1000)
    known = first.result()
    text = with_options.submit("text").result()
    with tags("around"):
        tagged = value.submit({"in": [first]})
    mapped = with_options.map([1, first])
    return [
        first,
        with_options.submit(known),
        with_options.submit(text, key=known),
        tagged,
        value.submit(wait_for=[first, tagged]),
        *mapped,
        named.submit("a"),
        with_options.submit(first.state),
        value.submit(True),
        value.with_options(name="other").submit(),
    ]


def task_runs_under(runner: TaskRunner[Any]) -> list[TaskRun]:
    """The task runs of `submit_all`, as its hooks saw them."""
    seen: dict[Any, TaskRun] = {}

    def note(_: Any, task_run: TaskRun, __: State) -> None:
        seen[task_run.id] = task_run

    hooks = [note]
    tasks = [value, with_options, named]

    @flow(task_runner=runner)
    def all_kinds() -> list[Any]:
        futures = submit_all()
        wait(futures)
        return [future.task_run_id for future in futures]

    for each in tasks:
        each.on_completion_hooks = list(hooks)
    try:
        ids = all_kinds()
    finally:
        for each in tasks:
            each.on_completion_hooks = []
    order = [*ids, *(each for each in seen if each not in ids)]
    return [seen[each] for each in order if each in seen]


def comparable(task_runs: list[TaskRun]) -> Iterator[dict[str, Any]]:
    positions = {run.id: position for position, run in enumerate(task_runs)}
    for run in task_runs:
        assert run.name.startswith("named") or run.name.endswith(f"-{run.dynamic_key[:3]}")
        yield {
            **run.model_dump(mode="json", exclude=VARYING | {"flow_run_id"}),
            "tags": sorted(run.tags),
            "name": run.name.removesuffix(f"-{run.dynamic_key[:3]}"),
            "inputs": {
                name: sorted(positions[cast(Any, each).id] for each in inputs)
                for name, inputs in run.task_inputs.items()
            },
            "types": {name: type(getattr(run, name)) for name in VARYING - {"total_run_time"}},
            "state": {"type": run.state.type, "name": run.state.name} if run.state else None,
        }


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.filterwarnings("ignore:.*Prefect.*:UserWarning")
def test_a_task_run_has_the_fields_that_prefects_has() -> None:
    """Under JobTaskRunner every field of a task run is that of one under Prefect's own runner, but ids and times."""
    ours = list(comparable(task_runs_under(JobTaskRunner(2))))
    theirs = list(comparable(task_runs_under(ThreadPoolTaskRunner(2))))
    assert len(ours) == len(theirs) > 10
    for own, prefects in zip(ours, theirs, strict=True):
        assert own == prefects


@pytest.mark.usefixtures("prefect_api")
def test_attributes_that_a_task_gets_later_are_in_its_later_runs() -> None:
    """A task run shows the retries, tags and name that its task has when it is submitted, in the same flow run too."""
    changing = task(unchanged, name="before")

    @flow(task_runner=JobTaskRunner(1))
    def changes() -> list[TaskRun]:
        seen: list[TaskRun] = []
        changing.on_completion_hooks.append(lambda _, task_run, __: seen.append(task_run))
        changing.submit(-1).result()
        changing.name, changing.retries = "after", 2
        changing.tags.add("late")
        changing.submit(-1).result()
        return seen

    first, second = changes()
    assert (first.name[:6], first.empirical_policy.retries, first.tags) == ("before", 0, [])
    assert (second.name[:5], second.empirical_policy.retries, second.tags) == ("after", 2, ["late"])


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """A result store in a folder that is reached by a link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    return ResultStore(result_storage=LocalFileSystem(basepath=str(tmp_path / "link")))


@pytest.mark.parametrize("key", ["0b6e5a", "a-b_c", "folder/name", "a.json"])
def test_a_record_is_the_one_that_prefect_makes(store: ResultStore, key: str) -> None:
    """The record of a value has the metadata of Prefect's, and Prefect finds it where it says."""
    own = JobResultStore.like(store)
    record, prefects = own.create_result_record(["x"], key), store.create_result_record(["x"], key)
    assert (record.result, record.metadata.storage_key) == (["x"], prefects.metadata.storage_key)
    assert record.metadata.model_dump() == prefects.metadata.model_dump()
    assert not own.exists(key)
    own.persist_result_record(record)
    assert own.exists(key)
    assert store.read(key).result == ["x"]


def test_a_key_outside_the_folder_is_left_to_prefect(store: ResultStore) -> None:
    """A key that is more than a plain name is Prefect's to resolve."""
    own = JobResultStore.like(store)
    with pytest.raises(ValueError, match="outside of the base path"):
        own.create_result_record("x", "../out")
    assert not own.exists("../out")
