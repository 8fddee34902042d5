"""Sends requests to one API: within its rate, with its credentials to its own origin alone, one answer at a time.

No request is repeated here: an error says by its code whether the job is retried, and the job continues after the last
page that was landed.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx

from executor_adapter.config import Credential, RestTool, redacted, remember
from executor_adapter.error_codes import error_code_of, retry_after_of
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.disk import locked
from executor_adapter.pipeline.errors import configuration_error
from executor_adapter.pipeline.job_log import log
from executor_adapter.pipeline.sources.unpacking import bounded

MAX_REDIRECTS = 5
MAX_READ = 1 << 16
"""Bytes of an answer in which an error looks for secrets: a part of one would not be known."""
MAX_SHOWN = 200
"""Characters of an answer that an error shows."""
MIN_LIFETIME = 30.0
"""Seconds that a token must be valid for still, or else a new one is got."""
MAX_ANSWER = 1 << 20
"""Bytes of an answer with a token, at most."""
DEFAULT_LIFETIME = 300.0
"""Seconds for which a token is taken to be valid whose server does not say."""
STEP = 0.5
"""Seconds of a wait that cannot be interrupted, at most."""
LONG_WAIT = 10.0
"""Seconds from which on the job's log says that a request waits for its moment."""


class ApiClient:
    """Sends the requests of one job.

    Args:
        tool: the API; its `url` is set.
        rate_file: the file by which the requests of all jobs of the tool keep to its rate.
    """

    def __init__(self, tool: RestTool, rate_file: Path) -> None:
        self._tool, self._rate_file = tool, rate_file
        self._base = httpx.URL(tool.url.rstrip("/"))
        self._headers = {name: value for name, value in tool.headers.items() if "{credential}" not in value}
        self._authentication = Authentication(tool)
        # Only gzip, since that is what landed files are unpacked from. Its cookies would go to other ports of the host.
        no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
        self._client = httpx.Client(timeout=tool.timeout, headers={"Accept-Encoding": "gzip"}, cookies=no_cookies)
        self._cookies = httpx.Cookies()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def address(self, path: str) -> httpx.URL:
        """Return the URL of a path below the tool's url."""
        return httpx.URL(f"{self._base}/{path.lstrip('/')}")

    def next_address(self, current: httpx.URL, found: str) -> httpx.URL:
        """Return the URL of the next page, which is one of the same origin or of a host in `allowed_hosts`.

        Raises:
            DataCollectionException: CONFIGURATION_ERROR, it is another one.
        """
        url = current.join(found)
        if url.host == self._base.host and (url.scheme, self._base.scheme) == ("http", "https") and url.port is None:
            url = url.copy_with(scheme="https")  # The API does not know of the proxy before it.
        self._check_target(url, f"{shown(current)} says that the next page is at")
        return url

    @contextmanager
    def answer(self, url: httpx.URL) -> Iterator[httpx.Response]:
        """Send a request, follow redirects, and yield the answer, whose body is to come: read it raw, by `bounded`.

        Raises:
            DataCollectionException: CONFIGURATION_ERROR, REQUEST_ERROR, API_ERROR, RATE_LIMITED or NETWORK_ERROR (also
                where the body is cut off): see `error_codes`.
        """
        with _explained(url):
            response = self._send(url)
            if response.status_code == 401 and self._authentication.forget_token():
                response.close()
                response = self._send(url)
            try:
                _raise_for_status(response)
                yield response
            finally:
                response.close()

    def _send(self, url: httpx.URL) -> httpx.Response:
        for _ in range(MAX_REDIRECTS + 1):
            is_own = self._is_own(url)
            request = self._client.build_request("GET", url)
            if is_own:
                request.headers.update({**self._headers, **self._authentication.headers(self._client)})
                self._cookies.set_cookie_header(request)
            if self._tool.request_rate is not None:
                wait_for_turn(self._rate_file, self._tool.request_rate)
            response = self._client.send(request, stream=True)
            if is_own:
                self._cookies.extract_cookies(response)
            followed = response.next_request
            if followed is None:
                return response
            response.close()
            self._check_target(followed.url, f"{shown(url)} redirects to")
            url = followed.url
        raise configuration_error(f"{shown(url)} redirects more than {MAX_REDIRECTS} times")

    def _check_target(self, url: httpx.URL, said: str) -> None:
        """Refuse what an answer leads to beside the API's own origin and `allowed_hosts`."""
        if self._is_own(url):
            return
        if not {url.host, f"{url.host}:{url.port}"} & set(self._tool.allowed_hosts):
            way = f"another host, {shown(url)}: name it in allowed_hosts, or set url to it"
        elif _is_link_local(url.host):
            way = f"{shown(url)}, a link-local address, which no answer may lead to"
        else:
            return
        raise configuration_error(f"{said} {way}")

    def _is_own(self, url: httpx.URL) -> bool:
        return (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)


def _is_link_local(host: str) -> bool:
    """Return whether a host has a link-local address, where clouds give the credentials of a machine to who asks."""
    with suppress(OSError, UnicodeError):  # The request says what is wrong with the name.
        found = {ipaddress.ip_address(str(each[4][0])) for each in socket.getaddrinfo(host, None)}
        return any((getattr(each, "ipv4_mapped", None) or each).is_link_local for each in found)
    return False


def shown(url: httpx.URL) -> str:
    """Return a URL for people, without secrets."""
    return redacted(str(url))


@contextmanager
def _explained(url: httpx.URL) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        said = redacted(f"{url}: {str(error) or type(error).__name__}")
        # It says all that httpx does, and hides secrets.
        raise DataCollectionException(
            said, error_code=error_code_of(error), retry_after=retry_after_of(error)
        ) from None


def _raise_for_status(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    packed = "content-encoding" in response.headers
    text = "" if packed else next(response.iter_raw(MAX_READ), b"").decode("utf-8", "replace")
    start = redacted(text)[:MAX_SHOWN].strip()
    answered = f"answered {response.status_code} {response.reason_phrase}{': ' if start else ''}{start}"
    raise httpx.HTTPStatusError(answered, request=response.request, response=response)


class Authentication:
    """Makes the secret headers of a tool's requests. They are for the tool's own origin alone.

    Raises:
        ConfigurationError: the credential is missing where the configuration says it is.
        DataCollectionException: CONFIGURATION_ERROR, it cannot be sent in a header.
    """

    def __init__(self, tool: RestTool) -> None:
        self._tool = tool
        self._token, self._valid_until = "", 0.0

    def headers(self, client: httpx.Client) -> dict[str, str]:
        """Return the headers; a token of OAuth2 is got with `client` when there is none that is valid still."""
        tool = self._tool
        if tool.credential is None:
            return {}
        if tool.token_url is not None:
            if time.monotonic() > self._valid_until - MIN_LIFETIME:
                self._get_token(client, tool.token_url, tool.credential)
            return {"Authorization": f"Bearer {self._token}"}
        secret = _secret(tool.credential)
        if tool.username is not None:
            return {"Authorization": _basic(tool.username, secret)}
        templates = {name: value for name, value in tool.headers.items() if "{credential}" in value}
        templates = templates or {"Authorization": "Bearer {credential}"}
        return {name: value.replace("{credential}", secret) for name, value in templates.items()}

    def forget_token(self) -> bool:
        """Get a new token for the next request; return whether there is one to forget."""
        had_token, self._token, self._valid_until = bool(self._token), "", 0.0
        return had_token

    def _get_token(self, client: httpx.Client, url: str, credential: Credential) -> None:
        form = {"grant_type": "client_credentials"} | ({"scope": self._tool.scope} if self._tool.scope else {})
        headers = {
            "Authorization": _basic(self._tool.username or "", _secret(credential)),
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        with client.stream("POST", url, data=form, headers=headers) as response:
            response.raise_for_status()
            limit = min(MAX_ANSWER, self._tool.max_bytes)
            way = "correct token_url" if limit == MAX_ANSWER else "raise max_bytes, or correct token_url"
            content = b"".join(bounded(response.iter_raw(), limit, f"{shown(response.url)} sent", way))
        self._token, lifetime = _token_in(content, redacted(url))
        remember(self._token)
        self._valid_until = time.monotonic() + lifetime


def _token_in(content: bytes, url: str) -> tuple[str, float]:
    try:
        found: Any = json.loads(content)
        token, lifetime = str(found["access_token"]), float(found.get("expires_in") or DEFAULT_LIFETIME)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        token, lifetime = "", 0.0
    if not (token and token.isascii() and token.isprintable()):
        raise configuration_error(
            f"{url} sent no access_token: check token_url: {redacted(content.decode('utf-8', 'replace'))[:200]}"
        )
    return token, lifetime


def _secret(credential: Credential) -> str:
    secret = credential.resolve().get_secret_value()
    if not (secret.isascii() and secret.isprintable()):  # An HTTP library would quote the value in its error.
        raise configuration_error(
            f"the credential in the {credential} has a line break or another character that no header may have"
        )
    return secret


def _basic(name: str, secret: str) -> str:
    pair = base64.b64encode(f"{name}:{secret}".encode()).decode()
    remember(pair)  # An API may repeat what it got, and the secret is not to be seen in it.
    return f"Basic {pair}"


def wait_for_turn(file: Path, rate: float) -> None:
    """Wait until the next request may be sent, where all processes of the machine send `rate` of them in a second.

    Each request has a moment of its own, see `take_turn`.
    """
    moment = take_turn(file, rate)
    if (rest := moment - time.monotonic()) >= LONG_WAIT:
        log("waits %.0f seconds: request_rate is %g, and other requests come before", rest, rate)
    # In steps, so that a thread whose job is at its limit can end.
    while (rest := moment - time.monotonic()) > 0:
        time.sleep(min(rest, STEP))


def take_turn(file: Path, rate: float) -> float:
    """Take the next free moment, and return it, on the clock since the start of the machine, which nobody sets.

    `file` has the moment at which it was written, and the next free one.
    """
    with locked(file):
        now = written = free = time.monotonic()
        with suppress(ValueError):  # Nobody has written it yet, or a power cut has left a part.
            written, free = map(float, file.read_text().split())
        # Where the machine was started again meanwhile, nobody waits for the moments from before.
        moment = free if written <= now < free else now
        file.write_text(f"{now!r} {moment + 1 / rate!r}")
    return moment
