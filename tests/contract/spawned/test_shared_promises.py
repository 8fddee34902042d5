"""Runs the tests of the guardian's pool that hold for spawned workers too over the spawned pool."""

from __future__ import annotations

from tests.contract.process_pool import test_running
from tests.contract.process_pool.harness import harness
from tests.contract.process_pool.test_deaths import (
    test_a_crash_is_described,
    test_an_argument_that_fails_to_pickle_is_refused_at_submit,
    test_only_the_misbehaving_job_fails,
    test_sigkill_in_the_middle_of_a_large_result,
)
from tests.contract.process_pool.test_reporting import (
    test_a_flood_of_lines_is_cut_and_the_rest_counted,
    test_a_thousand_lines_a_second_are_all_reported,
    test_checkpoints_and_events_are_reported,
    test_output_and_log_records_are_reported_for_their_own_job,
    test_progress_is_thinned_but_the_last_report_arrives,
)
from tests.contract.process_pool.test_running import (
    test_a_call_runs_in_another_process_and_returns_its_value,
    test_a_changed_sys_path_reaches_running_workers,
    test_a_coroutine_function_is_run_to_its_end,
    test_a_forked_process_that_returns_is_no_second_worker,
    test_a_function_sees_its_job,
    test_a_function_that_closes_everything_harms_itself_alone,
    test_short_calls_are_queued_behind_one_another_and_run_once,
    test_the_scope_is_entered_around_the_function,
)
from tests.contract.process_pool.test_sending import (
    test_a_function_that_cannot_be_pickled_is_refused,
    test_a_module_hidden_by_another_file_is_sent_by_value,
    test_a_module_that_a_child_cannot_import_is_sent_by_value,
    test_a_reference_can_be_sent,
    test_a_reference_to_nothing_is_refused,
    test_an_argument_is_the_same_in_every_attempt,
    test_an_argument_that_cannot_be_pickled_is_refused_by_name,
    test_an_exception_arrives_with_its_traceback,
    test_an_exception_that_cannot_be_pickled_keeps_its_message_and_code,
    test_any_callable_can_be_sent,
)
from tests.contract.process_pool.test_stopping import (
    test_a_call_that_holds_the_gil_is_stopped_at_once,
    test_a_function_is_asked_to_end_and_cleans_up,
    test_a_function_that_checks_cancelled_ends_by_itself,
    test_a_soft_timeout_that_is_not_caught_is_the_error,
    test_a_stopped_worker_is_killed,
    test_interrupt_raises_in_the_function_and_logs_where,
    test_stopping_an_ended_job_is_harmless,
    test_the_shorter_grace_counts,
)

__all__ = [
    "test_a_call_runs_in_another_process_and_returns_its_value",
    "test_a_call_that_holds_the_gil_is_stopped_at_once",
    "test_a_changed_sys_path_reaches_running_workers",
    "test_a_coroutine_function_is_run_to_its_end",
    "test_a_crash_is_described",
    "test_a_flood_of_lines_is_cut_and_the_rest_counted",
    "test_a_forked_process_that_returns_is_no_second_worker",
    "test_a_function_is_asked_to_end_and_cleans_up",
    "test_a_function_sees_its_job",
    "test_a_function_that_cannot_be_pickled_is_refused",
    "test_a_function_that_checks_cancelled_ends_by_itself",
    "test_a_function_that_closes_everything_harms_itself_alone",
    "test_a_module_hidden_by_another_file_is_sent_by_value",
    "test_a_module_that_a_child_cannot_import_is_sent_by_value",
    "test_a_reference_can_be_sent",
    "test_a_reference_to_nothing_is_refused",
    "test_a_soft_timeout_that_is_not_caught_is_the_error",
    "test_a_stopped_worker_is_killed",
    "test_a_thousand_lines_a_second_are_all_reported",
    "test_an_argument_is_the_same_in_every_attempt",
    "test_an_argument_that_cannot_be_pickled_is_refused_by_name",
    "test_an_argument_that_fails_to_pickle_is_refused_at_submit",
    "test_an_exception_arrives_with_its_traceback",
    "test_an_exception_that_cannot_be_pickled_keeps_its_message_and_code",
    "test_any_callable_can_be_sent",
    "test_checkpoints_and_events_are_reported",
    "test_interrupt_raises_in_the_function_and_logs_where",
    "test_only_the_misbehaving_job_fails",
    "test_output_and_log_records_are_reported_for_their_own_job",
    "test_progress_is_thinned_but_the_last_report_arrives",
    "test_short_calls_are_queued_behind_one_another_and_run_once",
    "test_sigkill_in_the_middle_of_a_large_result",
    "test_stopping_an_ended_job_is_harmless",
    "test_the_scope_is_entered_around_the_function",
    "test_the_shorter_grace_counts",
]


def test_a_new_worker_has_its_own_session_no_input_and_little_loaded() -> None:
    """A new worker has a session of its own and empty stdin, and has not imported heavy packages.

    The other tests share workers, in which theirs may have imported some.
    """
    with harness(2, start_method="spawn") as pool:
        test_running.test_a_worker_has_its_own_session_no_input_and_little_loaded(pool)
