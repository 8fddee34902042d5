"""Tests what functions report: output, log records, progress, checkpoints, events."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from executor_adapter.job.pool_names import StartMethod
from executor_adapter.worker.context import current_job
from tests.contract.process_pool import functions
from tests.contract.process_pool.harness import Harness, harness


def test_output_and_log_records_are_reported_for_their_own_job(pool: Harness) -> None:
    """Output of a function, of its children and its log records are reported for their own job."""
    assignments = {name: pool.submit(functions.print_and_log, name) for name in ("one", "two")}
    pool.until_ended(*assignments.values())
    for name, assignment in assignments.items():
        output = pool.messages_of(assignment, "output")
        assert sorted(output) == [
            ("stderr", "raw to 2"),
            ("stdout", "from a child"),
            ("stdout", f"no end {name}"),
            ("stdout", f"printed {name}"),
            ("stdout", "raw to 1"),
        ]
        (record,) = pool.messages_of(assignment, "log")
        assert (record["name"], record["level"], record["message"]) == ("collector", 20, f"logged {name}")
        assert record["page"] == 3
        assert record["thing"].startswith("<object")


@pytest.mark.parametrize("start_method", ["guardian", "spawn"])
def test_a_warning_of_an_initializer_is_logged_once(
    start_method: StartMethod, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning that an initializer logs is logged here once, though each worker sends it; other records are not."""
    with harness(2, start_method=start_method, initializer=(functions.warn, ("a licence ends soon",))) as pool:
        pool.warm_up(2)
    assert [record.getMessage() for record in caplog.records] == ["a licence ends soon"]
    assert pool.messages == []


def test_output_is_reported_before_the_result_for_the_right_job() -> None:
    """Each line is reported before the result of its job, even if jobs are queued behind one another."""
    with harness(1) as pool:
        assignments = [pool.submit(print, number, short=True) for number in range(200)]
        pool.until_ended(*assignments)
        assert [pool.messages_of(each, "output") for each in assignments] == [[("stdout", str(n))] for n in range(200)]


def test_progress_is_thinned_but_the_last_report_arrives(pool: Harness) -> None:
    """Frequent progress reports are thinned, but the first and the last one arrive."""
    assignment = pool.submit(functions.report_progress, 10_000)
    pool.value(assignment)
    reported = pool.messages_of(assignment, "progress")
    assert reported[0] == (1, 10_000, "page 1")
    assert reported[-1] == (10_000, 10_000, "page 10000")
    assert len(reported) < 1_000


def test_checkpoints_and_events_are_reported(pool: Harness) -> None:
    """Checkpoints and events arrive, and the next attempt reads the checkpoint."""
    saved, sent = pool.submit(functions.save_checkpoint, [1, 2]), pool.submit(functions.send_event, "rows", {"n": 3})
    pool.until_ended(saved, sent)
    (checkpoint,) = pool.messages_of(saved, "checkpoint")
    ((kind, content),) = pool.messages_of(sent, "event")
    assert (kind, pickle.loads(content)) == ("rows", {"n": 3})
    assert pool.value(pool.submit(lambda: current_job().checkpoint_value, checkpoint=checkpoint)) == [1, 2]


def test_a_checkpoint_may_be_of_a_class_that_a_worker_cannot_import(pool: Harness) -> None:
    """The next attempt reads an object of a script's class as one of that class."""

    class Page:
        number = 3

    def save() -> None:
        current_job().checkpoint(Page())

    def read() -> tuple[bool, int]:
        page = current_job().checkpoint_value
        return isinstance(page, Page), page.number

    saved = pool.submit(save)
    pool.value(saved)
    (checkpoint,) = pool.messages_of(saved, "checkpoint")
    assert pool.value(pool.submit(read, checkpoint=checkpoint)) == (True, 3)


def test_a_thread_of_a_function_is_told_that_it_is_in_no_job(pool: Harness) -> None:
    """`current_job()` fails in a thread that a function starts, and its error says what such a thread needs."""

    def ask() -> str:
        with ThreadPoolExecutor(1) as threads:
            return str(threads.submit(current_job).exception())

    assert "give what it returns to threads" in pool.value(pool.submit(ask))


def test_what_is_reported_is_plain_data(pool: Harness) -> None:
    """Texts and numbers of classes of their own arrive as Python's: nobody's code runs where they are read."""
    assignment = pool.submit(functions.log_odd_values)
    pool.value(assignment)
    (record,) = pool.messages_of(assignment, "log")
    assert [type(record[name]) for name in ("message", "level", "text", "number", "flag")] == [str, int, str, str, bool]
    assert [type(each) for each in pool.messages_of(assignment, "progress")[-1]] == [float, int, str]


def test_a_log_record_with_an_odd_place_harms_no_result(pool: Harness) -> None:
    """A record whose time and place are of a class of their own arrives as plain data, and then the job's result."""
    assignment = pool.submit(functions.log_odd_place)
    assert pool.value(assignment) == "logged"
    (record,) = pool.messages_of(assignment, "log")
    assert [type(record[name]) for name in ("created", "pathname", "lineno", "funcName")] == [float, str, str, str]


def test_a_flood_of_lines_is_cut_and_the_rest_counted(pool: Harness) -> None:
    """Lines beyond the limit are left out, and their number is logged."""
    assignment = pool.submit(functions.print_lines, 40_000)
    pool.value(assignment)
    reported = len(pool.messages_of(assignment, "output"))
    (record,) = pool.messages_of(assignment, "log")
    assert 10_000 <= reported < 40_000
    assert record["message"].startswith(f"{40_000 - reported} lines of output and log were left out")


def test_output_without_room_waits_in_its_pipe_and_is_not_lost() -> None:
    """While there is no room a worker waits, in its write or for its next call; then every line is reported."""
    with harness(1) as pool:
        pool.output_full = True
        short, after = pool.submit(print, "short"), pool.submit(functions.print_lines, 40_000)
        pool.value(short)
        for _ in range(10):
            pool.turn()
        assert (pool.messages_of(short, "output"), after in pool.endings) == ([("stdout", "short")], False)
        pool.output_full = False
        pool.value(after)
        assert len(pool.messages_of(after, "output")) == 40_000
        assert not pool.messages_of(after, "log")


def test_a_thousand_lines_a_second_are_all_reported(pool: Harness) -> None:
    """Output below the limit is reported completely."""
    assignment = pool.submit(functions.print_lines, 5_000)
    pool.value(assignment)
    assert len(pool.messages_of(assignment, "output")) == 5_000
    assert not pool.messages_of(assignment, "log")
