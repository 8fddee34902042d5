"""Sends requests to one API: within its rate, with its credentials to its own origin alone, one answer at a time.

No request is repeated here: an error says by its code whether the job is retried, and the job continues after the last
page that was landed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import httpx

from executor_adapter.config import RestTool, redacted
from executor_adapter.error_codes import error_code_of, retry_after_of
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.job_log import progress
from executor_adapter.pipeline.sources.rest.authentication import Authentication
from executor_adapter.pipeline.sources.rest.rate import RequestRate

MAX_REDIRECTS = 5
MAX_SHOWN = 200
"""Characters of an answer that an error shows."""


class ApiClient:
    """Sends the requests of one job.

    Args:
        tool: the API; its `url` is set.
        rate: the tool's request rate.
        headers: further headers, for the API's own origin alone.
    """

    def __init__(self, tool: RestTool, rate: RequestRate, headers: Mapping[str, str]) -> None:
        self._tool, self._rate = tool, rate
        self._base = httpx.URL((tool.url or "").rstrip("/"))
        public = {name: value for name, value in tool.headers.items() if "{credential}" not in value}
        self._headers = {**headers, **public}
        self._authentication = Authentication(tool)
        # Only gzip, since that is what landed files are unpacked from.
        self._client = httpx.Client(timeout=tool.timeout, headers={"Accept-Encoding": "gzip"})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def address(self, path: str) -> httpx.URL:
        """Return the URL of a path below the tool's url."""
        return httpx.URL(f"{self._base}/{path.lstrip('/')}")

    def next_address(self, current: httpx.URL, found: str) -> httpx.URL:
        """Return the URL of the next page, which is one of the same origin.

        Raises:
            DataCollectionException: CONFIGURATION_ERROR, it is of another origin, which gets no credentials.
        """
        url = current.join(found)
        if url.host == self._base.host and (url.scheme, self._base.scheme) == ("http", "https") and url.port is None:
            url = url.copy_with(scheme="https")  # The API does not know of the proxy before it.
        if not self._is_own(url):
            raise DataCollectionException(
                f"{shown(current)} says that the next page is at another origin, {shown(url)}: set url to that",
                error_code="CONFIGURATION_ERROR",
            )
        return url

    @contextmanager
    def answer(self, method: str, url: httpx.URL, *, body: Any = None) -> Iterator[httpx.Response]:
        """Send a request, follow redirects, and yield the answer, whose body is still to come: read it by `chunks`.

        Raises:
            DataCollectionException: CONFIGURATION_ERROR, REQUEST_ERROR, API_ERROR, RATE_LIMITED or NETWORK_ERROR: see
                `error_codes`.
        """
        with _explained(url):
            response = self._send(method, url, body)
            if response.status_code == 401 and self._authentication.forget_token():
                response.close()
                response = self._send(method, url, body)
            try:
                _raise_for_status(response)
                yield response
            finally:
                response.close()

    def chunks(self, response: httpx.Response) -> Iterator[bytes]:
        """Yield the body as it is received, not unpacked.

        Raises:
            DataCollectionException: NETWORK_ERROR, it is cut off; DATA_ERROR, it is larger than `max_bytes`.
        """
        done, limit = 0, self._tool.max_bytes
        with _explained(response.url):
            for chunk in response.iter_raw():
                done += len(chunk)
                if done > limit:
                    raise DataCollectionException(
                        f"{shown(response.url)} sent more than {limit:,} bytes: raise max_bytes",
                        error_code="DATA_ERROR",
                    )
                progress(done, None, "bytes")
                yield chunk

    def _send(self, method: str, url: httpx.URL, body: Any) -> httpx.Response:
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request(method, url, json=body)
            if self._is_own(url):
                request.headers.update({**self._headers, **self._authentication.headers(self._client)})
            self._rate.wait()
            response = self._client.send(request, stream=True)
            followed = response.next_request
            if followed is None:
                return response
            response.close()
            if body is not None and followed.method != "GET" and not self._is_own(followed.url):
                raise DataCollectionException(
                    f"{shown(url)} redirects a {method} with its body to another origin, {shown(followed.url)}",
                    error_code="CONFIGURATION_ERROR",
                )
            method, url = followed.method, followed.url
            body = body if method != "GET" else None
        raise DataCollectionException(
            f"{shown(url)} redirects more than {MAX_REDIRECTS} times", error_code="CONFIGURATION_ERROR"
        )

    def _is_own(self, url: httpx.URL) -> bool:
        return (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)


def shown(url: httpx.URL) -> str:
    """Return a URL for people, without secrets."""
    return redacted(str(url))


@contextmanager
def _explained(url: httpx.URL) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        said = str(error) or type(error).__name__
        raise DataCollectionException(
            redacted(f"{url}: {said}"),
            error_code=error_code_of(error),
            retry_after=retry_after_of(error),
        ) from None  # It says all that httpx does, and hides secrets.


def _raise_for_status(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    packed = "content-encoding" in response.headers
    start = "" if packed else next(response.iter_raw(MAX_SHOWN), b"").decode("utf-8", "replace")[:MAX_SHOWN].strip()
    answered = f"answered {response.status_code} {response.reason_phrase}{': ' if start else ''}{start}"
    raise httpx.HTTPStatusError(answered, request=response.request, response=response)
