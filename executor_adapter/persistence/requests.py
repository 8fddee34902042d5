"""Requests to the recorder: calls that it makes once everything recorded before them is in the store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from executor_adapter.exceptions import ExecutorClosedError
from executor_adapter.job import Job
from executor_adapter.store import LeaseLostError, StoreUnavailableError

T = TypeVar("T")


class Request(NamedTuple):
    """A call for the recorder's thread, and the future of its value."""

    call: Callable[[], Any]
    done: Future[Any]
    may_wait: bool
    """Whether it waits while the store cannot be written; otherwise it then fails at once."""


class RequestQueue:
    """Holds requests in the order in which they were made.

    Args:
        lock: the recorder's lock, so that adding a request and starting the recorder's thread are one step.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._ready: list[Request] = []
        self._flushes: list[Request] = []
        """Flushes that the supervisor has not come to yet."""

    def add(self, call: Callable[[], T], *, may_wait: bool) -> Future[T]:
        """Add a call; its future raises StoreUnavailableError where the store is down and it may not wait."""
        request = Request(call, Future(), may_wait)
        with self._lock:
            self._ready.append(request)
        return request.done

    def add_flush(self) -> Request:
        """Add a request without a call, which becomes ready by `release_flush`."""
        request = Request(lambda: None, Future(), may_wait=True)
        with self._lock:
            self._flushes.append(request)
        return request

    def release_flush(self, request: Request) -> None:
        """Make a flush ready: the supervisor has reported all that was submitted before it."""
        with self._lock:
            self._flushes.remove(request)
            self._ready.append(request)

    # --- on the recorder's thread ---

    def take(self) -> list[Request]:
        """Remove and return the requests that are ready."""
        with self._lock:
            requests, self._ready = self._ready, []
        return requests

    def answer(self, request: Request) -> None:
        """Make the call and resolve its future.

        Raises:
            LeaseLostError: another host has taken the lease; the request is made again with the next one.
        """
        try:
            request.done.set_result(request.call())
        except LeaseLostError:
            with self._lock:
                self._ready.append(request)
            raise
        except Exception as error:
            request.done.set_exception(error)

    def put_back(self, requests: list[Request], *, unavailable: str | None) -> None:
        """Put requests back in front; with `unavailable`, the store's fault, those that may not wait fail with it."""
        waiting = [request for request in requests if request.may_wait or unavailable is None]
        with self._lock:
            self._ready = waiting + self._ready
        for request in requests:
            if request not in waiting:
                request.done.set_exception(StoreUnavailableError(unavailable))

    def close(self) -> None:
        """Resolve what is left when the recorder ends."""
        for request in self._flushes:
            request.done.set_result(None)
        for request in self._ready:
            request.done.set_exception(ExecutorClosedError("the executor is shut down: make another executor"))


class WrittenFutures:
    """Futures of new jobs, each resolved once its job is in the store.

    Args:
        lock: the recorder's lock, so that asking whether a job is written and waiting for it are one step.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._futures: dict[Job, Future[None]] = {}

    def add(self, job: Job) -> Future[None]:
        """Return the job's future."""
        return self._futures.setdefault(job, Future())

    def resolve(self, jobs: Iterable[Job]) -> None:
        """Resolve the futures of jobs that have been written."""
        with self._lock:
            written = [self._futures.pop(job) for job in jobs if job in self._futures] if self._futures else []
        for future in written:
            future.set_result(None)

    def resolve_all(self) -> None:
        """Resolve every future, so that no caller waits for a store that is down."""
        with self._lock:
            given_up, self._futures = self._futures, {}
        for future in given_up.values():
            future.set_result(None)
