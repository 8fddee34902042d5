"""Credentials go to the API's own origin alone, and the request rate of a tool is shared by its jobs."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from executor_adapter.config import RestTool, redacted
from executor_adapter.pipeline.sources.rest import client
from executor_adapter.pipeline.sources.rest.client import Authentication, take_turn, wait_for_turn
from tests.pipeline.hostile_server import Answer, Api, Request, as_json, serving
from tests.pipeline.rest import collect, failure, land, tool
from tests.waiting import PATIENCE

SECRET = "hush-hush-1234"
BASIC = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bearer": ({}, {"authorization": f"Bearer {SECRET}"}),
    "basic": ({"username": "me"}, {"authorization": BASIC}),
    "header": ({"headers": {"X-Api-Key": "{credential}", "X-Team": "blue"}}, {"x-api-key": SECRET, "x-team": "blue"}),
    "oauth2": ({"username": "me", "token_url": "URL/token", "scope": "read"}, {"authorization": "Bearer token-0"}),
}


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_SECRET", SECRET)


def described(url: str, kind: str, **more: Any) -> Any:
    fields = {
        name: value.replace("URL", url) if isinstance(value, str) else value for name, value in KINDS[kind][0].items()
    }
    return tool(url, credential={"env": "API_SECRET"}, **fields, **more)


def with_tokens(respond: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
    """Let the server also give tokens, each of them once."""
    given = 0

    def answer(request: Request) -> Answer:
        nonlocal given
        if request.path != "/token":
            return respond(request)
        assert request.headers["authorization"] == BASIC
        assert request.body == b"grant_type=client_credentials&scope=read"
        given += 1
        return as_json({"access_token": f"token-{given - 1}", "expires_in": 3600})

    return answer


def sent(request: Request, kind: str) -> dict[str, str | None]:
    return {name: request.headers.get(name) for name in KINDS[kind][1]}


def only(name: str) -> Callable[..., Any]:
    """Return a `getaddrinfo` that knows a link-local address of one name, and all others as ever."""
    known = socket.getaddrinfo

    def look_up(host: Any, *more: Any, **named: Any) -> Any:
        return known("169.254.169.254" if host == name else host, *more, **named)

    return look_up


def items(api: Api) -> list[Request]:
    return [request for request in api.requests if request.path != "/token"]


@pytest.mark.parametrize("kind", KINDS)
def test_credentials_are_sent_to_the_api(tmp_path: Path, kind: str) -> None:
    """Each kind of credential is in every request for a page; a token is got once."""
    pages = [[{"id": 1}], [{"id": 2}], []]
    with serving(with_tokens(lambda request: as_json(pages[int(request.query["offset"])]))) as api:
        collect(tmp_path, described(api.url, kind, paging={"by": "offset"}))
    assert [sent(request, kind) for request in items(api)] == [KINDS[kind][1]] * 3
    assert len(api.requests) - len(items(api)) == (kind == "oauth2")


@pytest.mark.parametrize("kind", KINDS)
def test_credentials_do_not_follow_a_redirect(tmp_path: Path, kind: str) -> None:
    """A redirect to an allowed host is followed without any header of the tool's; one to the API's own with all."""
    with serving(lambda _: as_json([{"id": 1}])) as other:

        def respond(request: Request) -> Answer:
            if request.path == "/items":
                return 302, {"Location": "/moved"}, b""
            return 302, {"Location": f"{other.url}/file"}, b""

        with serving(with_tokens(respond)) as api:
            allowed = [other.url.removeprefix("http://")]
            assert collect(tmp_path, described(api.url, kind, allowed_hosts=allowed)) == [{"id": "1"}]
    assert [sent(request, kind) for request in items(api)] == [KINDS[kind][1]] * 2
    assert [sent(request, kind) for request in other.requests] == [dict.fromkeys(KINDS[kind][1])]
    assert SECRET not in str([request.headers for request in other.requests])


def test_endless_redirects_are_refused(tmp_path: Path) -> None:
    """An API that leads to itself for ever is a configuration error."""
    with serving(lambda _: (307, {"Location": "/items"}, b"")) as api:
        error = failure(tmp_path, tool(api.url))
    assert (error.error_code, "redirects more than 5 times" in str(error)) == ("CONFIGURATION_ERROR", True)


@pytest.mark.parametrize("paging", [{"by": "none"}, {"by": "url", "next": "next"}])
def test_an_answer_leads_to_no_host_that_is_not_allowed(tmp_path: Path, paging: Any) -> None:
    """A redirect and a next page to another host or port are refused and named; with allowed_hosts they are followed.

    One to a link-local address is refused in either case, also by a name or in the form of IPv6.
    """
    targets = {"https://other.example/x": "name it in allowed_hosts"}
    targets |= dict.fromkeys(("http://169.254.169.254/x", "http://[fe80::1]/x"), "a link-local address")
    targets["http://[::ffff:169.254.169.254]/x"] = "a link-local address"
    with serving(lambda _: as_json({"next": None, "items": [{"id": 2}]})) as other:
        port = other.url.rpartition(":")[2]
        for number, (target, said) in enumerate({f"{other.url}/x": "name it in allowed_hosts", **targets}.items()):

            def respond(_: Request, target: str = target) -> Answer:
                if paging["by"] == "none":
                    return 302, {"Location": target}, b""
                return as_json({"next": target, "items": [{"id": 1}]})

            allowed = ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254"]
            with serving(respond) as api:
                asked = {"paging": paging, "resource": {"records": "items"}}
                error = failure(tmp_path / str(number), tool(api.url, allowed_hosts=allowed, **asked))
                assert (error.error_code, said in str(error)) == ("CONFIGURATION_ERROR", True), str(error)
                if target.startswith(other.url):
                    assert other.requests == []
                    found = collect(tmp_path / "allowed", tool(api.url, allowed_hosts=[f"127.0.0.1:{port}"], **asked))
                    assert {"id": "2"} in found


def test_a_name_of_a_link_local_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the address that a name stands for."""
    monkeypatch.setattr(socket, "getaddrinfo", only("metadata.example"))
    with serving(lambda _: (302, {"Location": "http://metadata.example/x"}, b"")) as api:
        error = failure(tmp_path, tool(api.url, allowed_hosts=["metadata.example"]))
    assert "a link-local address" in str(error)


def test_cookies_stay_with_their_origin(tmp_path: Path) -> None:
    """The API gets its cookies back, and none of another port of its host, which gets none."""
    with serving(lambda _: (200, {"Content-Type": "application/json", "Set-Cookie": "b=2"}, b'[{"id": 1}]')) as other:

        def respond(request: Request) -> Answer:
            if request.query["offset"] == "0":
                return 302, {"Location": f"{other.url}/x", "Set-Cookie": "a=1"}, b""
            return as_json([])

        with serving(respond) as api:
            collect(tmp_path, tool(api.url, paging={"by": "offset"}, allowed_hosts=["127.0.0.1"]))
    assert [request.headers.get("cookie") for request in api.requests] == [None, "a=1"]
    assert other.requests[0].headers.get("cookie") is None


def test_a_token_that_was_revoked_is_replaced_once(tmp_path: Path) -> None:
    """A 401 gets a new token, and a second one is an error."""
    with serving(
        with_tokens(
            lambda request: (
                as_json([{"id": 1}]) if request.headers["authorization"] == "Bearer token-1" else (401, {}, b"")
            )
        )
    ) as api:
        assert collect(tmp_path / "a", described(api.url, "oauth2")) == [{"id": "1"}]
    assert [request.path for request in api.requests] == ["/token", "/items", "/token", "/items"]
    with serving(with_tokens(lambda _: (401, {}, b""))) as api:
        assert failure(tmp_path / "b", described(api.url, "oauth2")).error_code == "CONFIGURATION_ERROR"
    assert len(api.requests) == 4


def test_a_refused_or_strange_token_is_an_error(tmp_path: Path) -> None:
    """What the token's server refuses, and an answer without a token, are configuration errors."""
    for answer in ((401, {}, b""), as_json({"error": "no"}), as_json([]), as_json({"access_token": "a\nb"})):
        with serving(lambda _: answer) as api:  # noqa: B023
            assert failure(tmp_path, described(api.url, "oauth2")).error_code == "CONFIGURATION_ERROR"


def test_a_large_answer_for_a_token_is_refused(tmp_path: Path) -> None:
    """What the token's server sends is bounded, and not unpacked: a few kilobytes may stand for gigabytes."""
    large = json.dumps({"access_token": "x" * (2 << 20)}).encode()
    for number, (headers, body) in enumerate((({}, large), ({"Content-Encoding": "gzip"}, gzip.compress(large)))):
        with serving(lambda _: (200, headers, body)) as api:  # noqa: B023
            error = failure(tmp_path / str(number), described(api.url, "oauth2"))
        assert error.error_code == ("CONFIGURATION_ERROR" if headers else "DATA_ERROR")
        assert "access_token" in str(error) if headers else "bytes: correct token_url" in str(error)
        assert len(str(error)) < 1000


def test_max_bytes_bounds_an_answer_for_a_token_too(tmp_path: Path) -> None:
    """Where the tool takes less than a token may have, that holds, and the error names the setting."""
    with serving(with_tokens(lambda _: as_json([]))) as api:
        error = failure(tmp_path, described(api.url, "oauth2", max_bytes=5))
    assert "sent more than 5 bytes: raise max_bytes, or correct token_url" in str(error)


def test_a_secret_at_the_end_of_what_is_shown_is_hidden(tmp_path: Path) -> None:
    """An answer is cut after its secrets are hidden: a part of one would not be known."""
    for before in (180, 195, 65_536 - 5):
        with serving(lambda _: (400, {}, b"x" * before + b" " + SECRET.encode())) as api:  # noqa: B023
            error = failure(tmp_path / str(before), described(api.url, "bearer"))
        assert SECRET[:4] not in str(error)


def test_no_secret_is_shown(tmp_path: Path) -> None:
    """An API that repeats the credential in its error does not get it into ours, nor into the manifest."""
    with serving(lambda request: (400, {}, request.headers["authorization"].encode())) as api:
        error = failure(tmp_path, described(api.url, "bearer"))
    assert "answered 400 Bad Request: Bearer (hidden)" in str(error)
    with serving(lambda _: as_json([{"id": 1}])) as api:
        landing = land(tmp_path, described(api.url, "bearer", resource={"params": {"api_key": SECRET}}))
    assert SECRET not in landing.folder.joinpath("manifest.json").read_text()


# --- the request rate ---


class Clock:
    """The module `time` of a machine whose wall clock is set back by an hour whenever somebody looks at it."""

    def __init__(self, now: float) -> None:
        self.now, self.wall = now, 1e9

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        self.wall -= 3600
        return self.wall

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1e6


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(100.0)
    monkeypatch.setattr(client, "time", found)
    return found


def test_each_request_has_a_moment_of_its_own(tmp_path: Path, clock: Clock) -> None:
    """Jobs that share a rate take turns, from the present on; a pause is not made up for."""
    moments = [take_turn(tmp_path / "rate", 2.0) for _ in range(2)]
    clock.sleep(0.1)
    moments.append(take_turn(tmp_path / "rate", 2.0))
    clock.sleep(100)
    assert [*moments, take_turn(tmp_path / "rate", 2.0)] == [100.0, 100.5, 101.0, 200.1]


def test_the_rate_holds_over_processes(tmp_path: Path) -> None:
    """Processes that share a rate take turns too."""
    code = (
        "import sys; from pathlib import Path\n"
        "from executor_adapter.pipeline.sources.rest.client import take_turn\n"
        "for _ in range(20): print(take_turn(Path(sys.argv[1]), 10.0))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "rate")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    moments = sorted(float(line) for process in running for line in process.communicate(timeout=PATIENCE)[0].split())
    assert len(moments) == 40
    assert min(later - earlier for earlier, later in pairwise(moments)) == pytest.approx(0.1)


def test_a_clock_that_is_set_delays_no_request(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits for those before it alone, and the log of its job says so where that is long."""
    said = list[str]()
    monkeypatch.setattr(client, "log", lambda message, *values: said.append(message % values))
    take_turn(tmp_path / "rate", 0.05)
    wait_for_turn(tmp_path / "rate", 0.05)
    assert clock.now == 120.0
    assert said == ["waits 20 seconds: request_rate is 0.05, and other requests come before"]


@pytest.mark.parametrize("left", ["5000.0 5060.0", "5000.0", "\0\0", ""])
def test_what_a_machine_that_stopped_has_left_delays_no_request(tmp_path: Path, clock: Clock, left: str) -> None:
    """Whoever took moments before the machine was started again does not wait any more."""
    (tmp_path / "rate").write_text(left)
    assert [take_turn(tmp_path / "rate", 1.0) for _ in range(2)] == [100.0, 101.0]


def test_requests_keep_to_the_rate(tmp_path: Path) -> None:
    """The requests of a landing take their moments, and a tool without a rate has no file."""
    with serving(
        lambda request: as_json([] if request.query["offset"] == "2" else [{"id": request.query["offset"]}])
    ) as api:
        collect(tmp_path / "free", tool(api.url, paging={"by": "offset"}))
        collect(tmp_path / "slow", tool(api.url, paging={"by": "offset"}, request_rate=20.0))
    assert not list((tmp_path / "free").rglob("request-rate"))
    assert list((tmp_path / "slow").rglob("request-rate"))


def test_the_pair_of_basic_authentication_is_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an API repeats of basic authentication is hidden as the password in it is."""
    monkeypatch.setenv("PASSWORD_OF_ADA", "h0rse-battery-staple")
    described = RestTool.model_validate(
        {
            "source": "rest",
            "url": "http://a",
            "username": "ada",
            "credential": {"env": "PASSWORD_OF_ADA"},
            "resources": {"r": {"path": "/"}},
        }
    )
    with httpx.Client() as client:
        sent = Authentication(described).headers(client)["Authorization"]
    assert redacted(f"<{sent}>") == "<Basic (hidden)>"
