"""A flow of twelve ordinary tasks: `stock_flow.py task`, or with the pool of their job tasks, `thread` or `process`.

It is run as a program. The id of its flow run is its last line.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import allow_failure, flow, get_run_logger, task
from prefect.cache_policies import INPUTS
from prefect.runtime import flow_run

from executor_adapter.prefect import job_task

KIND = sys.argv[1] if __name__ == "__main__" else "task"


def kind(**options: Any) -> Any:
    """Return the decorator of the tasks: `task`, or `job_task` in the pool that the program was asked for."""
    return task(**options) if KIND == "task" else job_task(pool=KIND, **options)


def say_completed(_task: object, _run: object, state: Any) -> None:
    """Print that a task has completed, as a hook."""
    print("hook:", state.name)


def say_failed(_task: object, _run: object, state: Any) -> None:
    """Print why a task has failed, as a hook."""
    print("hook:", state.name, state.message)


@kind(retries=2)
def retried(calls: str) -> int:
    """Fail twice, then return how often it was called."""
    with Path(calls).open("a") as file:
        file.write("x")
    count = len(Path(calls).read_text())
    if count < 3:
        raise ConnectionError("reset")
    return count


@kind(on_failure=[say_failed])
def failing() -> None:
    """Fail, and have no retry."""
    raise LookupError("nothing there")


@kind(cache_policy=INPUTS, persist_result=True)
def cached(text: str) -> str:
    """Return the text in capitals; it is printed where that is computed."""
    print("computed", text)
    return text.upper()


@kind()
def mapped(number: int) -> int:
    """Return the square of a number."""
    return number * number


@kind(name="within a subflow")
def within(number: int) -> int:
    """Return the next number."""
    return number + 1


@flow
def child(number: int) -> int:
    """Run a task as a subflow."""
    found: int = within(number)
    return found


@kind(on_completion=[say_completed])
def hooked() -> str:
    """Have a hook."""
    return "hooked"


@kind(persist_result=True, result_storage_key="stored.json", result_serializer="json")
def stored() -> dict[str, int]:
    """Return a result that is stored under a key."""
    return {"stored": 1}


@kind(tags=["nightly"], task_run_name="tagged {name}")
def tagged(name: str) -> str:
    """Have a tag, and a name of its own."""
    return name


@kind()
def printing() -> None:
    """Print to both streams."""
    print("printed")
    print("to stderr", file=sys.stderr)


@kind(log_prints=True)
def logging_prints() -> None:
    """Print into the log, and log."""
    print("logged print")
    get_run_logger().info("logged")


@kind()
async def awaited(number: int) -> int:
    """Return a number from a coroutine."""
    return number


@kind()
def framed(rows: int) -> pd.DataFrame:
    """Return a DataFrame."""
    return pd.DataFrame({"row": range(rows)})


@flow
def everything(directory: str) -> None:
    """Run them all, one after the other."""
    print(retried.submit(f"{directory}/calls").result())
    failed = failing.submit()
    failed.wait()
    print(failed.state.type.value, failed.state.name, failed.state.message)
    print(cached("text"), cached("text"), cached.submit("text", return_state=True).name)
    print(mapped.map([1, 2, 3]).result())
    print(child(1))
    print(hooked())
    print(stored(), Path(directory, "stored.json").exists())
    print(tagged("one"), tagged.submit("two", wait_for=[allow_failure(failed)]).result())
    printing.submit().wait()
    logging_prints()
    print(awaited.submit(7).result())
    frame = framed.submit(4)
    print(mapped.submit(frame).result()["row"].sum())
    print(flow_run.id)


if __name__ == "__main__":
    everything(sys.argv[2])
