"""What a pool reports of an attempt: facts, which everybody may read, and a body, which only `Body.open` looks inside.

Unpickling runs users' code, and so does anything that is asked of an exception. So the facts are read where the
function ran. The body travels as its worker wrote it, through agents too, and is opened by the thread that asks for the
result. A body that nobody asks for is closed unopened.
"""

from __future__ import annotations

import logging
import pickle
import threading
from enum import Enum
from typing import Any, NamedTuple

from executor_adapter.error_facts import ErrorFacts, keep_facts
from executor_adapter.exceptions import JobError, JobSerializationError, SoftTimeoutError
from executor_adapter.exceptions.display import as_exception, set_cause, text_of
from executor_adapter.worker import values, wire
from executor_adapter.worker.facts import facts_of, read_facts

logger = logging.getLogger("executor_adapter.job")

PLAIN_TYPES = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types whose objects have no code of users that runs when they are freed."""


class Ending(Enum):
    """Names how an attempt ended, as its pool observed it."""

    RETURNED = "the function returned"
    RAISED = "the function raised"
    UNSENDABLE = "function, argument or result could not be sent; the error is a JobSerializationError"
    CRASHED = "its worker died without being stopped; the error is a WorkerCrashedError"
    STOPPED = "it ended because `stop` was called, and nothing it started is alive"
    ABANDONED = "`stop` was called but it cannot be ended (a thread stuck in C code): the pool gave up on it"


class Body:
    """What a function returned or raised: an object of this process, or a frame as its worker wrote it.

    `error`: what `open` is to raise. `frame`: the body of a frame without its facts; `file`: the memory file that came
    with it. `facts`: those of the exception in it; None if it holds a value. `job_id`: whose it is.
    """

    __slots__ = ("_lock", "error", "facts", "file", "frame", "is_plain", "job_id", "value")

    def __init__(
        self,
        value: Any = None,
        error: BaseException | None = None,
        *,
        frame: bytes | None = None,
        file: values.MemoryFile | None = None,
        facts: ErrorFacts | None = None,
        job_id: str = "",
    ) -> None:
        self.value = value
        """What the function returned, once it is open."""
        self.error = error
        self.frame = frame
        """The pickle, or the sizes of the parts of the file; None once it is open."""
        self.file = file
        self.facts = facts
        self.job_id = job_id
        self.is_plain = error is None and type(value) in PLAIN_TYPES
        """Whether no code of users runs when it is freed: it is not open, or holds plain data."""
        if frame is not None:
            self._lock = threading.Lock()

    def open(self) -> Any:
        """Return the value, or raise the error. The first call unpickles it; further ones return or raise the same.

        Raises:
            JobSerializationError: it cannot be unpickled here.
        """
        if self.frame is not None:
            self._unpack()
        if self.error is None:
            return self.value
        try:
            raise self.error
        finally:
            del self  # Otherwise the error's traceback would keep this frame alive, and with it the error.

    def exception(self) -> BaseException | None:
        """Return what `open` raises; None where it returns a value."""
        if self.frame is not None:
            self._unpack()
        return self.error

    def _unpack(self) -> None:
        with self._lock:
            if self.frame is None:
                return
            try:
                content = pickle.loads(self.frame) if self.file is None else self.file.load()
                if self.facts is None:
                    self.value = content
                else:
                    self.error = _as_raised(content, self.facts)
            except SoftTimeoutError:
                raise  # It is for the job that asks.
            except (Exception, SystemExit) as error:
                self.error = self._loading_error(error)
            self.frame = self.file = None
            self.is_plain = self.error is None and type(self.value) in PLAIN_TYPES

    def _loading_error(self, error: BaseException) -> JobSerializationError:
        what = "the result" if self.facts is None else "the exception"
        was = "" if self.facts is None else f"; it was {self.facts.text}"
        message = f"{what} cannot be unpickled: {type(error).__name__}: {text_of(error)}{was}"
        logger.error("job %s: %s", self.job_id, message, extra={"job_id": self.job_id})
        failure = JobSerializationError(message)
        failure.__cause__ = error
        keep_facts(failure, self.facts)  # Whether it is retried depends on what the function raised.
        return failure

    def hold(self) -> None:
        """Hold no file open if so many are that the program may lack descriptors: it may be long until this is opened.

        A memory file that cannot be read is an error that `open` raises.
        """
        if self.file is not None:
            try:
                self.file.spare_descriptor()
            except Exception as error:
                self.error, self.is_plain = self._loading_error(error), False
                self.frame = self.file = None


def _as_raised(content: Any, facts: ErrorFacts) -> BaseException:
    error: Any = content
    # The class of an exception decides what it is pickled as.
    if not issubclass(type(error), BaseException):
        error = JobError(f"the function raised an exception that was unpickled as a {type(content).__name__}")
    if facts.traceback:
        set_cause(error, wire.RemoteTraceback(facts.traceback))
    error = as_exception(error)
    keep_facts(error, facts)
    return error  # type: ignore[no-any-return]


class Outcome(NamedTuple):
    """How an attempt ended: all that the supervisor, retries, records and states know of it."""

    ending: Ending
    error: ErrorFacts | None = None
    """What is known of its error; None where the function returned, or the supervisor knows why it was stopped."""
    records: int | None = None
    """The number of collected or processed records that the value states."""
    body: Body = Body()


STOPPED = Outcome(Ending.STOPPED)
ABANDONED = Outcome(Ending.ABANDONED)
_RETURNED_NONE = Outcome(Ending.RETURNED)
_ENDINGS = {wire.RETURNED: Ending.RETURNED, wire.RAISED: Ending.RAISED, wire.UNSENDABLE: Ending.UNSENDABLE}


def returned(value: Any) -> Outcome:
    """Return the outcome of a function of this process that returned."""
    records = values.records_in(value) if type(value) is dict else None
    return _RETURNED_NONE if value is None else Outcome(Ending.RETURNED, None, records, Body(value))


def raised(error: BaseException) -> Outcome:
    """Return the outcome of a function of this process that raised; called on the thread where it ran.

    An exception whose own code raises when its facts are read is replaced by a JobError.
    """
    try:
        error = as_exception(error)
        facts = read_facts(error)
        keep_facts(error, facts)
        return Outcome(Ending.RAISED, facts, None, Body(error=error))
    except BaseException as fault:
        if type(fault) is SoftTimeoutError:  # It was raised while the facts were read.
            return failed(fault)
        name = type(error).__name__
        return failed(JobError(f"the function raised {name}, which cannot be read: {type(fault).__name__}"))


def failed(error: BaseException, ending: Ending = Ending.RAISED) -> Outcome:
    """Return the outcome of an attempt that ended with an exception whose code may run here."""
    error = as_exception(error)
    return Outcome(ending, facts_of(error), None, Body(error=error))


def crashed(error: BaseException) -> Outcome:
    """Return the outcome of an attempt whose worker died, or did not come."""
    return failed(error, Ending.CRASHED)


def received(kind: int, flags: int, body: bytes, fd: int, job_id: str) -> Outcome:
    """Return the outcome in a frame, unopened; `fd`: the memory file that came with it, or -1."""
    if flags & wire.NO_VALUE:
        return _RETURNED_NONE
    known: Any = None
    if flags & wire.FACTS:
        known, body = values.load_plain(body)
    file = None
    if flags & wire.IN_FILE:
        if fd < 0:
            text = (
                f"the result is of {values.MIN_MEMORY_FILE_BYTES} bytes or more, and no file descriptor is left for "
                "it: raise the limit (ulimit -n), or return less"
            )
            return failed(JobSerializationError(text), Ending.UNSENDABLE)
        file = values.MemoryFile(fd, body)
    if kind == wire.RETURNED:
        return Outcome(Ending.RETURNED, None, known, Body(frame=body, file=file, job_id=job_id))
    facts = ErrorFacts(*known)
    return Outcome(_ENDINGS[kind], facts, None, Body(frame=body, file=file, facts=facts, job_id=job_id))


def packed(outcome: Outcome) -> tuple[int, int, bytes]:
    """Return the kind, flags and body of the frame that an outcome was received in."""
    body = outcome.body
    kind = next(kind for kind, ending in _ENDINGS.items() if ending is outcome.ending)
    if body.frame is None:
        return kind, wire.NO_VALUE, b""
    flags = 0 if body.file is None else wire.IN_FILE
    facts: Any = outcome.records if outcome.error is None else tuple(outcome.error)
    if facts is None:
        return kind, flags, body.frame
    return kind, flags | wire.FACTS, pickle.dumps(facts, 5) + body.frame
