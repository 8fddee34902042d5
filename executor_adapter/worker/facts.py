"""Reads the facts of an error, on the thread where the function ran: so they count into the attempt's limits.

Every worker may import this module, so it needs the standard library alone.
"""

from __future__ import annotations

from executor_adapter.error_codes import error_code_of, retry_after_of
from executor_adapter.error_facts import ErrorFacts, is_a, keep_facts, kept_facts, kinds_of
from executor_adapter.exceptions import JobCancelledError, JobTimeoutError, WorkerCrashedError
from executor_adapter.exceptions.display import message_of, traceback_text
from executor_adapter.worker.wire import RemoteTraceback

MAX_TRACEBACK = 8_000
"""Characters that are kept of a traceback; what is cut off are the outer calls."""
MAX_TEXT = 1 << 20
"""Characters that are kept of an error's text."""


def mask(text: str) -> str:
    """Return a text without secrets. `config.secrets` replaces this function once this process has read one."""
    return text


def facts_of(error: BaseException) -> ErrorFacts:
    """Return the facts of an error: those that were read where it was raised, if they were."""
    if (facts := kept_facts(error)) is None:
        facts = read_facts(error)
        keep_facts(error, facts)
    return facts


def read_facts(error: BaseException, trace: str | None = None) -> ErrorFacts:
    """Return the facts of an error that was raised just now. This runs code of its class.

    `trace`: its traceback as text, where that is not to be made.
    """
    keep_facts(error, None)  # It may have been raised in another job before.
    ended = error.context if type(error) is JobCancelledError or type(error) is JobTimeoutError else {}
    text = mask((_trace_of(error) if trace is None else trace).strip())
    if (left_out := len(text) - MAX_TRACEBACK) > 0:
        text = f"... ({left_out:,} characters)\n{text[left_out:]}"
    return ErrorFacts(
        str.__str__(error_code_of(error)),
        kinds_of(error),
        mask(message_of(error))[:MAX_TEXT],
        text or None,
        retry_after_of(error),
        None if ended.get("ends") is None else f"{ended['ends']}",
        bool(ended.get("shutdown")),
    )


def _trace_of(error: BaseException) -> str:
    """Return where a job failed: its traceback, where it was at a time limit, or the end of a crash's output."""
    if is_a(error, WorkerCrashedError):
        tail = error.output_tail.strip()
        return f"The end of its output:\n{tail}" if tail else ""
    if is_a(cause := error.__cause__, RemoteTraceback):
        return cause.text
    ended = is_a(error, JobTimeoutError) or is_a(error, JobCancelledError)
    return "" if ended else traceback_text(error, error.__traceback__)
