"""One attempt in a worker: what arrived becomes a call, and what came of the call becomes the body of a frame.

Every worker imports this module, so it needs the standard library alone.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import os
import pickle
import signal
import time
import types
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from executor_adapter.exceptions import JobError, SoftTimeoutError
from executor_adapter.exceptions.display import as_exception, as_job_error, repr_of, text_of, traceback_text
from executor_adapter.worker import values, wire
from executor_adapter.worker.context import JobContext, enter_job
from executor_adapter.worker.reporter import Voice

REFERENCE, PICKLE = b"R", b"P"
"""First byte of an encoded function: `module:qualname` follows, or a pickle."""

Reply = tuple[int, int, bytes, values.MemoryFile | None]
"""Kind and flags of a frame, its body, and the memory file that goes with it."""

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a worker that was asked to end, once its function has."""

NO_REPLY: Reply = (0, 0, b"", None)
"""Of an attempt that was asked to end: nobody waits for what came of it."""


class Call(NamedTuple):
    """A CALL frame, not yet looked into. `fd`: the memory file with its arguments, or -1."""

    flags: int
    number: int
    seq: int
    function: int
    max_runtime: float
    body: bytes
    fd: int

    def drop(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class Functions:
    """The functions that this worker was sent, decoded when first called."""

    def __init__(self) -> None:
        self._known: dict[int, bytes | Callable[..., Any]] = {}

    def add(self, number: int, encoded: bytes, *, forget: bool) -> None:
        if forget:
            self._known.clear()
        self._known[number] = encoded

    def remove(self, number: int) -> None:
        self._known.pop(number, None)

    def get(self, number: int) -> Callable[..., Any]:
        function = self._known[number]
        if isinstance(function, bytes):
            function = self._known[number] = self.decode(function)
        return function

    @staticmethod
    def decode(encoded: bytes) -> Callable[..., Any]:
        if encoded[:1] == PICKLE:
            return pickle.loads(memoryview(encoded)[1:])  # type: ignore[no-any-return]
        return find(encoded[1:].decode())  # type: ignore[no-any-return]


def find(reference: str) -> Any:
    """What `module:qualname` names."""
    module, _, qualname = reference.partition(":")
    found = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


class Attempt:
    """Run one call. A signal may raise in it while it is `armed`."""

    def __init__(self, call: Call, functions: Functions, voice: Voice) -> None:
        self.armed = False
        self._call = call
        self._functions = functions
        self._voice = voice
        self.asked_to_end = False
        self._looked = False
        self._stage = "function"

    def ask_to_end(self) -> bool:
        """Set the flag that the function may look at; whether it never has, and must be ended by an exception."""
        self.asked_to_end = True
        return not self._looked

    def _cancelled(self) -> bool:
        self._looked = True
        return self.asked_to_end

    def run(self) -> Reply:
        self._voice.seq = self._call.seq
        try:
            try:
                self.armed = True
                return contextvars.copy_context().run(self._run)
            finally:
                self.armed = False
        except BaseException as error:
            self.armed = False
            return NO_REPLY if self.asked_to_end else self._failure(error)

    def _run(self) -> Reply:
        call = self._call
        ends_at = time.monotonic() + call.max_runtime if call.max_runtime else None
        function = self._function()
        job_id, about, args, kwargs, (scope, checkpoint) = self._unpack()
        self._stage = "run"
        enter_job(
            JobContext(
                job_id,
                call.number,
                emit=self._voice.emit,
                ends_at=ends_at,
                cancelled=self._cancelled,
                checkpoint=checkpoint,
                tool_name=about[0],
                metadata=about[1],
            )
        )
        if self.asked_to_end:
            raise SystemExit(TERMINATED)  # the signal came too early to be raised in the function
        with find(scope[0])(scope[1]) if scope is not None else nullcontext():
            value = function(*args, **kwargs)
            if type(value) is types.CoroutineType:
                value = asyncio.run(value)
        self._stage = "result"
        return self._success(value)

    def _function(self) -> Callable[..., Any]:
        try:
            return self._functions.get(self._call.function)
        finally:
            if self._call.flags & wire.ONCE:
                self._functions.remove(self._call.function)

    def _unpack(self) -> tuple[str, tuple[Any, Any], tuple[Any, ...], dict[str, Any], tuple[Any, Any]]:
        self._stage = "arguments"
        body = memoryview(self._call.body)
        id_size, about_size, args_size = wire.CALL_SIZES.unpack_from(body)
        about_at = wire.CALL_SIZES.size + id_size
        args_at = about_at + about_size
        rest_at = args_at + args_size
        job_id = str(body[wire.CALL_SIZES.size : about_at], "utf-8")
        about = pickle.loads(body[about_at:args_at]) if about_size else (None, None)
        rest = pickle.loads(body[rest_at:]) if rest_at < len(body) else (None, None)
        args, kwargs = self._arguments(body[args_at:rest_at])
        return job_id, about, args, kwargs, rest

    def _arguments(self, encoded: memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._call.flags & wire.NOTHING:
            return (), {}
        if self._call.flags & wire.IN_FILE:
            return values.load_from_file(self._call.fd, bytes(encoded))  # type: ignore[no-any-return]
        return pickle.loads(encoded)  # type: ignore[no-any-return]

    def _success(self, value: Any) -> Reply:
        if value is None:
            return wire.RETURNED, wire.NOTHING, b"", None
        body, file = values.dump(value, values.checked_dumps)
        return wire.RETURNED, 0 if file is None else wire.IN_FILE, body, file

    # --- failures ---

    def _failure(self, error: BaseException) -> Reply:
        try:
            text = traceback_text(error, _below_us(error))
            BaseException.with_traceback(error, None)  # its frames hold what the function held
            return self._told(error, text)
        except BaseException as fault:
            told = JobError(f"the function raised {type(error).__name__}, which cannot be looked at: {repr_of(fault)}")
            return wire.RAISED, 0, pickle.dumps((told, ""), 5), None

    def _told(self, error: BaseException, text: str) -> Reply:
        if self._stage != "run" and not isinstance(error, SoftTimeoutError | SystemExit):
            message = f"the {_STAGES[self._stage]}: {type(error).__name__}: {text_of(error)}"
            return wire.UNSENDABLE, 0, pickle.dumps((message, text), 5), None
        try:
            body = values.checked_dumps((as_exception(error), text))
        except BaseException:
            # It does not travel: what it said, its traceback and its error code do.
            body = pickle.dumps((as_job_error(error, f"{type(error).__name__}: {text_of(error)}"), text), 5)
        return wire.RAISED, 0, body, None


_STAGES = {
    "function": "function cannot be loaded in the worker",
    "arguments": "arguments cannot be unpickled in the worker",
    "result": "result cannot travel back",
}


def _below_us(error: BaseException) -> types.TracebackType | None:
    """Its traceback from the function on."""
    tb = error.__traceback__
    while tb is not None and tb.tb_frame.f_code.co_filename == __file__:
        tb = tb.tb_next
    return tb
