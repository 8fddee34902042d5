"""Turns the frames of a worker into reports to the supervisor."""

from __future__ import annotations

import copyreg
import functools
import logging
import os
import pickle
import re
from collections.abc import Callable
from typing import Any, Protocol

from executor_adapter.exceptions import JobError, JobSerializationError
from executor_adapter.exceptions.display import as_exception, read_once, set_cause, text_of
from executor_adapter.pools.base import Assignment, Ending, PoolSupervisor
from executor_adapter.pools.transport.decoder import Decoder
from executor_adapter.worker import values, wire

logger = logging.getLogger("executor_adapter.process")

_CODE = re.compile(rb"(?:\x94|h.|j.{4}|\x95.{8})" + values.STACK_GLOBAL, re.DOTALL)
"""STACK_GLOBAL after one of the opcodes that may precede it: MEMOIZE, BINGET, LONG_BINGET or FRAME. In a float or a
text the byte of STACK_GLOBAL alone is frequent."""

_EXTENSION = re.compile(rb"[\x82-\x84]")
"""EXT1, EXT2 and EXT4, which name a class by the number that `copyreg.add_extension` gave it."""


def refers_to_code(pickled: bytes) -> bool:
    """Return whether unpickling may run anybody's code; rarely True for plain data, never False for anything else."""
    if values.STACK_GLOBAL in pickled and _CODE.search(pickled) is not None:
        return True
    has_extensions = bool(copyreg._extension_registry)  # type: ignore[attr-defined]  # noqa: SLF001  no public name
    return has_extensions and _EXTENSION.search(pickled) is not None


def _decode_result(
    supervisor: PoolSupervisor, assignment: Assignment, kind: int, flags: int, body: bytes, fd: int
) -> Callable[[], None]:
    """Unpickle a result, and run the code of an exception. Return the call that reports it."""
    ended = functools.partial(supervisor.ended, assignment)
    if flags & wire.NO_VALUE:
        return functools.partial(ended, Ending.RETURNED, None)
    if fd < 0 and flags & wire.IN_FILE:
        failure: BaseException = JobSerializationError(
            f"the result is of {values.MIN_MEMORY_FILE_BYTES} bytes or more, and no file descriptor is left for it: "
            "raise the limit (ulimit -n), or return less"
        )
        return functools.partial(ended, Ending.UNSENDABLE, error=failure)
    try:
        content = pickle.loads(body) if fd < 0 else values.load_memory_file(fd, body)
        if kind == wire.RETURNED:
            return functools.partial(ended, Ending.RETURNED, content)
        failure = _failure(kind, *content)
        read_once(failure)
    except BaseException as error:
        return functools.partial(ended, Ending.UNSENDABLE, error=_unpickling_error(error))
    return functools.partial(ended, Ending.RAISED if kind == wire.RAISED else Ending.UNSENDABLE, error=failure)


def _failure(kind: int, received: Any, traceback: str) -> BaseException:
    error: Any = received if kind == wire.RAISED else JobSerializationError(received)
    # The class of an exception decides what it is pickled as.
    if not issubclass(type(error), BaseException):
        error = JobError(f"the function raised an exception that was unpickled as a {type(received).__name__}")
    set_cause(error, wire.RemoteTraceback(traceback))
    return as_exception(error)


def _unpickling_error(error: BaseException) -> JobSerializationError:
    failure = JobSerializationError(f"the result cannot be unpickled: {type(error).__name__}: {text_of(error)}")
    failure.__cause__ = error
    return failure


OnRecord = Callable[[Assignment | None, dict[str, Any]], None]


class ResultSink(Protocol):
    """Receives the results and messages of functions as their workers wrote them. Supervisor thread only."""

    def receive_result(self, assignment: Assignment, kind: int, flags: int, body: bytes, fd: int) -> None:
        """Receive the result of an attempt: the kind and flags of its frame, its body, and its memory file or -1."""

    def receive_message(self, assignment: Assignment | None, body: bytes, on_record: OnRecord) -> None:
        """Receive a message of a running function; `on_record` is to be called with both if it is a log record."""


class DecodingSink:
    """Decodes results and messages, and reports them to the supervisor."""

    def __init__(self, supervisor: PoolSupervisor, decoder: Decoder) -> None:
        self._supervisor = supervisor
        self._decoder = decoder

    def receive_result(self, assignment: Assignment, kind: int, flags: int, body: bytes, fd: int) -> None:
        """Report how an attempt ended. A result that cannot be loaded is UNSENDABLE, whatever its loading raises."""
        supervisor, decoder = self._supervisor, self._decoder
        if fd >= 0 or (body and refers_to_code(body)) or (decoder.pending and decoder.is_decoding(assignment)):
            decoder.decode(assignment, functools.partial(_decode_result, supervisor, assignment, kind, flags, body, fd))
        elif kind == wire.RETURNED and not flags & wire.IN_FILE:
            assignment.has_plain_value = True
            try:
                value = None if flags & wire.NO_VALUE else pickle.loads(body)
            except BaseException as error:
                supervisor.ended(assignment, Ending.UNSENDABLE, error=_unpickling_error(error))
            else:
                supervisor.ended(assignment, Ending.RETURNED, value)
        else:
            _decode_result(supervisor, assignment, kind, flags, body, fd)()

    def receive_message(self, assignment: Assignment | None, body: bytes, on_record: OnRecord) -> None:
        """Report a message of a running function. One that cannot be unpickled is logged and left out."""
        decode = functools.partial(_decode_message, self._supervisor, assignment, body, on_record)
        if refers_to_code(body) or self._decoder.is_decoding(assignment):
            self._decoder.decode(assignment, decode)
        else:
            decode()()


def _decode_message(
    supervisor: PoolSupervisor, assignment: Assignment | None, body: bytes, on_record: OnRecord
) -> Callable[[], None]:
    try:
        topic, content = pickle.loads(body)
    except BaseException:
        logger.exception("a message of a job cannot be unpickled")
        return lambda: None

    def report() -> None:
        if topic == "log":
            on_record(assignment, content)
        supervisor.on_message(assignment, topic, content)

    return report


def discard_file(fd: int) -> None:
    """Close the memory file of a result that is not used; -1 if it has none."""
    if fd >= 0:
        os.close(fd)
