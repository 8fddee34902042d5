"""One call in a worker: decodes a CALL frame, runs the function, and encodes the outcome as the body of a frame.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import operator
import os
import pickle
import signal
import time
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from executor_adapter.exceptions import JobError, JobSerializationError, SoftTimeoutError
from executor_adapter.exceptions.display import as_exception, as_job_error, text_of, traceback_text
from executor_adapter.worker import values, wire
from executor_adapter.worker.context import BoundCall, JobContext, enter_job
from executor_adapter.worker.reporter import WorkerReporter
from executor_adapter.worker.stacks import position_text, traceback_of_function

KEEP_RESULT = "executor_adapter.pools.cluster.node_data:keep"
"""What a result is given to that stays where its worker is."""

REFERENCE, PICKLE = b"R", b"P"
"""First byte of an encoded function: `module:qualname` follows, or a pickle."""

Reply = tuple[int, int, bytes, values.MemoryFile | None]
"""Kind and flags of a frame, its body, and the memory file that is sent with it."""

EXIT_TERMINATED = 128 + signal.SIGTERM
"""Exit code of a worker that was asked to end, and did so after its function."""

NO_REPLY: Reply = (0, 0, b"", None)
"""The reply of a call that was asked to end: its host waits for the worker's exit, not for a result."""


class ReceivedCall(NamedTuple):
    """A CALL frame whose body is not decoded yet. `fd`: the memory file with its arguments, or -1."""

    flags: int
    number: int
    seq: int
    function: int
    max_runtime: float
    body: bytes
    fd: int


Functions = dict[int, bytes | Callable[..., Any]]
"""The functions that were sent to a worker, by number: encoded until they are first called."""


def decode_function(encoded: bytes) -> Callable[..., Any]:
    """Return the function that was sent as a reference or a pickle."""
    if encoded[:1] == PICKLE:
        return pickle.loads(memoryview(encoded)[1:])  # type: ignore[no-any-return]
    return import_reference(encoded[1:].decode())  # type: ignore[no-any-return]


def import_reference(reference: str) -> Any:
    """Return the object that `module:qualname` names."""
    module, _, qualname = reference.partition(":")
    return operator.attrgetter(qualname)(importlib.import_module(module))


_NO_SCOPE = nullcontext()


class CallRunner:
    """Runs one call. A signal handler may raise in it while it is `interruptible`.

    `note_imports` is called when all is imported that the call needs, before its function runs.
    """

    def __init__(
        self,
        call: ReceivedCall,
        functions: Functions,
        reporter: WorkerReporter,
        note_imports: Callable[[], object] = lambda: None,
    ) -> None:
        self.interruptible = False
        self._call = call
        self._functions = functions
        self._reporter = reporter
        self._note_imports = note_imports
        # Made now, so that it is closed if anything fails before the arguments are unpickled.
        self._file = values.MemoryFile(call.fd, b"") if call.flags & wire.IN_FILE else None
        self.end_requested = False
        self._has_checked = self._is_late = self._has_begun = False
        self._stage = "function"
        self._coroutine: types.CoroutineType[Any, Any, Any] | None = None

    def request_end(self) -> bool:
        """Set `current_job().cancelled`. Return True if the function never checked it, so an exception must end it."""
        self.end_requested = True
        return not self._has_checked

    def pass_soft_timeout(self) -> None:
        """Raise SoftTimeoutError in the function, or when it begins: amid an import it would leave half a module."""
        self._is_late = True
        if self._has_begun:
            raise SoftTimeoutError("soft_timeout passed")

    def _cancelled(self) -> bool:
        self._has_checked = True
        return self.end_requested

    def position(self, frame: types.FrameType | None, *, source: bool) -> str:
        """Return where the function is, see `position_text`; `frame` is the innermost one of its thread."""
        return position_text(frame, self._coroutine, source=source)

    def run(self) -> Reply:
        """Run the function and return what to send to the host; never raises."""
        self._reporter.seq = self._call.seq
        try:
            try:
                self.interruptible = True
                return contextvars.copy_context().run(self._run)
            finally:
                self.interruptible = False
        except BaseException as error:
            self.interruptible = False
            return self.failure(error)

    def _run(self) -> Reply:
        call = self._call
        ends_at = time.monotonic() + call.max_runtime if call.max_runtime else None
        job_id, description, encoded, (scope, checkpoint, environment) = self._unpack()
        if environment is not None:  # Before anything is imported that may read it.
            os.environ.update(environment)
        function = self._function()
        args, kwargs = self._arguments(encoded)
        self._stage = "run"
        enter_job(
            JobContext(
                job_id,
                call.number,
                emit=self._reporter.emit,
                ends_at=ends_at,
                cancelled=self._cancelled,
                checkpoint=checkpoint,
                tool_name=description[0],
                metadata=description[1],
            )
        )
        if self.end_requested:
            raise SystemExit(EXIT_TERMINATED)  # The signal came too early to be raised in the function.
        with _NO_SCOPE if scope is None else import_reference(scope[0])(scope[1], BoundCall(function, args, kwargs)):
            self._note_imports()
            self._has_begun = True
            if self._is_late:
                self.pass_soft_timeout()
            value = function(*args, **kwargs)
            if type(value) is types.CoroutineType:
                self._coroutine = value
                value = asyncio.run(value)
        self._stage = "result"
        if call.flags & wire.KEEP and value is not None:
            value = import_reference(KEEP_RESULT)(value, job_id, call.number)
        return self._success(value)

    def _function(self) -> Callable[..., Any]:
        self._stage = "function"
        number = self._call.function
        function = self._functions.pop(number) if self._call.flags & wire.USE_ONCE else self._functions[number]
        if isinstance(function, bytes):
            function = decode_function(function)
            if not self._call.flags & wire.USE_ONCE:
                self._functions[number] = function
        return function

    def _unpack(self) -> tuple[str, tuple[Any, Any], memoryview, tuple[Any, Any, Any]]:
        """Return the job's id and description, its encoded arguments, and what belongs to this attempt."""
        self._stage = "arguments"
        body = memoryview(self._call.body)
        id_size, description_size, args_size = wire.CALL_SIZES.unpack_from(body)
        description_at = wire.CALL_SIZES.size + id_size
        args_at = description_at + description_size
        attempt_at = args_at + args_size
        job_id = str(body[wire.CALL_SIZES.size : description_at], "utf-8")
        description = pickle.loads(body[description_at:args_at]) if description_size else (None, None)
        of_attempt = pickle.loads(body[attempt_at:]) if attempt_at < len(body) else (None, None, None)
        return job_id, description, body[args_at:attempt_at], of_attempt

    def _arguments(self, encoded: memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._stage = "arguments"
        if self._call.flags & wire.NO_VALUE:
            return (), {}
        if (file := self._file) is not None:
            self._file, file.sizes = None, bytes(encoded)
            return file.load()  # type: ignore[no-any-return]
        return pickle.loads(encoded)  # type: ignore[no-any-return]

    def _success(self, value: Any) -> Reply:
        if value is None:
            return wire.RETURNED, wire.NO_VALUE, b"", None
        body, file = values.dump(value, values.checked_dumps)
        flags = 0 if file is None else wire.IN_FILE
        if type(value) is dict and (records := values.records_in(value)) is not None:
            return wire.RETURNED, flags | wire.FACTS, pickle.dumps(records, 5) + body, file
        return wire.RETURNED, flags, body, file

    # --- failures ---

    def failure(self, error: BaseException) -> Reply:
        """Return what to send to the host where `error` was raised."""
        if self.end_requested:
            return NO_REPLY
        try:
            text = traceback_text(error, traceback_of_function(error.__traceback__))
            # The frames of the traceback keep alive what the function's variables refer to.
            BaseException.with_traceback(error, None)
            if self._stage != "run" and not isinstance(error, SoftTimeoutError | SystemExit):
                message = f"the {_STAGES[self._stage]}: {type(error).__name__}: {text_of(error)}"
                code = "MISSING_MODULE" if isinstance(error, ModuleNotFoundError) else None
                return _error_reply(wire.UNSENDABLE, JobSerializationError(message, error_code=code), text)
            return _error_reply(wire.RAISED, as_exception(error), text)
        except BaseException as fault:
            message = f"the function raised {type(error).__name__}, which cannot be read: {type(fault).__name__}"
            return _error_reply(wire.RAISED, JobError(message), "")


def _error_reply(kind: int, error: Exception, trace: str) -> Reply:
    """Return a frame with the facts of an error and the exception, or one like it where that cannot be pickled."""
    from executor_adapter.worker.facts import read_facts  # A worker whose jobs never fail does not need it.

    facts = read_facts(error, trace)
    try:
        body = values.checked_dumps(error)
    except BaseException:
        body = pickle.dumps(as_job_error(error, f"{type(error).__name__}: {text_of(error)}"), 5)
    return kind, wire.FACTS, pickle.dumps(tuple(facts), 5) + body, None


_STAGES = {
    "function": "function cannot be loaded in the worker",
    "arguments": "arguments cannot be unpickled in the worker",
    "result": "result cannot be sent back",
}
