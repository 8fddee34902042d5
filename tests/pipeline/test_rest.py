"""A hostile API gives the right rows or a clear error with its code, and never a half-written landing."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from executor_adapter import Job, JobExecutor, RetryPolicy
from executor_adapter.error_codes import error_code_of, retry_after_of
from executor_adapter.exceptions import JobTimeoutError
from executor_adapter.pipeline import Landing
from executor_adapter.pipeline.sources.landing import find_landing
from tests.pipeline.hostile_server import Answer, Api, Raw, Request, as_json, raw_json, serving
from tests.pipeline.rest import DAY, collect, failure, land, rows, tool
from tests.waiting import PATIENCE, wait_for

ONE = [{"id": 1}]
BODY = json.dumps(ONE).encode()


def answered(root: Path, answer: Answer | Callable[[Request], Answer], **fields: Any) -> Any:
    """Return the error that an API's answer leads to."""
    with serving(answer if callable(answer) else lambda _: answer) as api:
        return failure(root, tool(api.url, **fields))


# --- bodies ---


@pytest.mark.parametrize(
    ("content_type", "body", "resource"),
    [
        ("application/json", b'[{"a": 1, "b": null}]', {}),
        ("application/vnd.api+json; charset=utf-8", b'{"data": [{"a": 1, "b": null}]}', {"records": "data"}),
        ("application/json", b'{"a": 1, "b": null}', {"records": "."}),
        ("application/x-ndjson", b'{"a": 1, "b": null}\n', {}),
        ("text/csv", b"a,b\n1,\n", {}),
        ("text/csv; charset=utf-16", "a;b\n1;\n".encode("utf-16"), {"delimiter": ";"}),
        ("application/octet-stream", b"a,b\n1,\n", {"format": "csv"}),
    ],
)
def test_bodies_of_every_kind_are_read(
    tmp_path: Path, content_type: str, body: bytes, resource: dict[str, Any]
) -> None:
    """JSON, NDJSON and CSV by their content type or as set, in their charset, also compressed."""
    for number, (packed, headers) in enumerate(((body, {}), (gzip.compress(body), {"Content-Encoding": "gzip"}))):
        with serving(lambda _: (200, {"Content-Type": content_type, **headers}, packed)) as api:  # noqa: B023
            described = tool(api.url, resource=resource)
            landing = land(tmp_path / str(number), described)
        assert landing.path_of(landing.files[0]).read_bytes() == packed
        assert (rows(landing, described), landing.rows) == ([{"a": "1", "b": None}], 1)


def test_a_tsv_file_of_an_api_has_tabs(tmp_path: Path) -> None:
    """The path of its URL says what it is, also before a query."""
    described = {"path": "/items.tsv", "params": {"limit": "5"}, "format": "csv"}
    with serving(lambda _: (200, {"Content-Type": "text/plain"}, b"a\tb\n1,5\t2\n")) as api:
        assert collect(tmp_path, tool(api.url, resource=described)) == [{"a": "1,5", "b": "2"}]


def test_values_are_not_changed(tmp_path: Path) -> None:
    """NaN, 30-digit integers, trailing zeros and null ids arrive as they were sent."""
    body = b'[{"id": 123456789012345678901234567890, "x": NaN, "p": 1.50}, {"id": null}]'
    with serving(lambda _: (200, {"Content-Type": "application/json"}, body)) as api:
        assert collect(tmp_path, tool(api.url)) == [
            {"id": "123456789012345678901234567890", "x": "NaN", "p": "1.50"},
            {"id": None, "x": None, "p": None},
        ]


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b'[{"a": "\xff"}]', "application/json", "is not JSON that can be read"),
        (b"[" * 100_000, "application/json", "recursion"),
        (b'[{"a": 1, "a": 2}]', "application/json", "the key 'a' is in one object twice"),
        (b'[{"a": 1}', "application/json", "it ends in the middle"),
        (b"<!doctype html><title>Sign in</title>", "text/html", "sent a web page, and no data"),
        (b"<html>", "application/json", "is not JSON that can be read"),
    ],
)
def test_what_is_no_data_is_a_data_error(tmp_path: Path, body: bytes, content_type: str, said: str) -> None:
    """A body that is broken as a whole is a DATA_ERROR, which is not retried."""
    error = answered(tmp_path, (200, {"Content-Type": content_type}, body))
    assert error.error_code == "DATA_ERROR"
    assert said in str(error)


def test_a_charset_that_there_is_not_is_a_configuration_error(tmp_path: Path) -> None:
    """What an answer says of its charset may be nonsense, or an encoding that is none of text."""
    for charset in ("nonsense", "hex"):
        error = answered(tmp_path, (200, {"Content-Type": "text/csv"}, b"a,b\n1,2\n"), resource={"encoding": charset})
        assert (error.error_code, "is not an encoding" in str(error)) == ("CONFIGURATION_ERROR", True)


def test_a_packing_that_was_not_asked_for_is_a_data_error(tmp_path: Path) -> None:
    """An answer that is packed in another way than gzip is named."""
    headers = {"Content-Type": "application/json", "Content-Encoding": "br"}
    error = answered(tmp_path, (200, headers, b"?"))
    assert (error.error_code, "sent br, though gzip alone was asked for" in str(error)) == ("DATA_ERROR", True)


def test_too_many_bytes_are_an_error(tmp_path: Path) -> None:
    """The limit holds for the bytes on the wire and for those unpacked."""
    big = json.dumps([{"id": "x" * 5000}]).encode()
    for number, answer in enumerate(
        (
            (200, {"Content-Type": "application/json"}, big),
            (200, {"Content-Type": "application/json", "Content-Encoding": "gzip"}, gzip.compress(big)),
        )
    ):
        error = answered(tmp_path / str(number), answer, max_bytes=2000)
        assert error.error_code == "DATA_ERROR"
        assert "2,000 bytes" in str(error)


def test_a_gzip_bomb_is_an_error(tmp_path: Path) -> None:
    """A small body that unpacks to a gigabyte is refused long before."""
    bomb = gzip.compress(b"[" + b" " * (200 << 20) + b"]")
    assert len(bomb) < 300_000
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    tracemalloc.start()
    try:
        error = answered(tmp_path, (200, headers, bomb), max_bytes=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()
    assert error.error_code == "DATA_ERROR"
    assert "unpacks to more than 1,000,000 bytes" in str(error)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (raw_json(BODY, "Content-Length: 99"), "NETWORK_ERROR"),
        (raw_json(BODY, "Content-Length: 3"), "DATA_ERROR"),
        (raw_json(b"9\r\n" + BODY[:5], "Transfer-Encoding: chunked"), "NETWORK_ERROR"),
        (raw_json(b"zz\r\n" + BODY, "Transfer-Encoding: chunked"), "NETWORK_ERROR"),
        (raw_json(BODY[:5]), "NETWORK_ERROR"),
        (raw_json(BODY, f"X-Long: {'x' * 1_000_000}"), "NETWORK_ERROR"),
        (Raw([b""]), "NETWORK_ERROR"),
        (Raw([b"SSH-2.0-OpenSSH_9.6\r\n"]), "NETWORK_ERROR"),
    ],
)
def test_cut_off_answers_are_errors(tmp_path: Path, answer: Raw, code: str) -> None:
    """A body that is cut off, chunked or not, or has a wrong length, makes no page."""
    assert answered(tmp_path, answer).error_code == code


# --- statuses and retries ---


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 429, 500, 503])
def test_one_classification_of_statuses(tmp_path: Path, status: int) -> None:
    """A status has the code that `error_codes` gives an httpx error, and the answer is shown."""
    import httpx

    request = httpx.Request("GET", "http://x")
    expected = error_code_of(httpx.HTTPStatusError("", request=request, response=httpx.Response(status)))
    error = answered(tmp_path, (status, {}, b"because"))
    assert error.error_code == expected
    assert f"/items: answered {status}" in str(error)
    assert str(error).endswith(": because")


def test_retry_after_is_read_in_both_forms(tmp_path: Path) -> None:
    """Seconds and dates in Retry-After reach the one who retries."""
    for asked in ("70", format_datetime(datetime.now(UTC) + timedelta(seconds=70), usegmt=True)):
        error = answered(tmp_path, (429, {"Retry-After": asked}, b""))
        assert (error.error_code, 60 < (retry_after_of(error) or 0) <= 70) == ("RATE_LIMITED", True)


def run(root: Path, described: Any, **fields: Any) -> Any:
    """Land the resource as a job; return the landing."""
    policy = RetryPolicy(retry_attempts=3, retry_delay=0, jitter=0)
    job = Job(function=land, args=(root, described), pool="thread", **{"retry": policy, **fields})
    with JobExecutor(1) as executor:
        return executor.run(job)


def test_no_page_is_asked_for_twice(tmp_path: Path) -> None:
    """After bursts of 503, 429 and cut bodies the job continues with the page that failed, and the rows are right."""
    answers: dict[str, Iterator[Answer | None]] = {
        "2": iter([(503, {}, b""), (503, {}, b""), None]),
        "4": iter([raw_json(BODY, "Content-Length: 99"), None]),
    }

    def respond(request: Request) -> Answer:
        offset = request.query["offset"]
        answer = next(answers[offset]) if offset in answers else None
        return answer or as_json([{"id": n} for n in range(6)][int(offset) :][:2])

    with serving(respond) as api:
        described = tool(api.url, paging={"by": "offset"})
        landing = run(tmp_path, described)
    assert rows(landing, described) == [{"id": str(n)} for n in range(6)]
    assert [request.query["offset"] for request in api.requests] == ["0", "2", "2", "2", "4", "4", "6"]


def test_a_cursor_that_has_expired_starts_anew(tmp_path: Path) -> None:
    """Where the API refuses to continue an interrupted landing, all pages are asked for again."""
    answers = iter([as_json({"items": ONE, "next": "old"}), (503, {}, b""), (400, {}, b"expired")])

    def respond(request: Request) -> Answer:
        return next(answers, None) or as_json({"items": [{"id": 2}], "next": None})

    with serving(respond) as api:
        described = tool(api.url, paging={"by": "cursor", "next": "next"}, resource={"records": "items"})
        assert rows(run(tmp_path, described), described) == [{"id": "2"}]
    assert len(api.requests) == 4


def test_slow_bytes_end_at_max_runtime(tmp_path: Path) -> None:
    """A server that sends a byte now and then cannot hold a job beyond its limit, and nothing half-written stays."""

    def slowly() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n["
        for _ in range(72_000):  # For an hour.
            time.sleep(0.05)
            yield b" "

    with serving(lambda _: Raw(slowly())) as api:
        with pytest.raises(JobTimeoutError):
            run(tmp_path, tool(api.url), max_runtime=0.5, retry=RetryPolicy(retry_attempts=0))
        wait_for(lambda: not list(tmp_path.rglob(".tmp-*")))
    assert list(tmp_path.rglob("manifest.json")) == list(tmp_path.rglob(".tmp-*")) == []


def test_a_server_that_is_away_is_a_network_error(tmp_path: Path) -> None:
    """A refused connection and a silent server are retried."""
    assert failure(tmp_path, tool("http://127.0.0.1:9")).error_code == "NETWORK_ERROR"
    with serving(lambda _: Raw(iter(lambda: time.sleep(0.3) or b"", b"x"))) as api:
        error = failure(tmp_path, tool(api.url, timeout=0.1))
    assert (error.error_code, "timed out" in str(error)) == ("NETWORK_ERROR", True)


# --- what is asked for ---


PARENTS = [{"id": "a/b?c#d"}, {"id": ".."}, {"id": None}, {"id": "é"}, {"id": "é"}]


def children(api: Api, **fields: Any) -> Any:
    resources = {"children": {"path": "/items/{id}/children", "for_each": "items", **fields}}
    return tool(api.url, resources=resources)


def test_children_are_asked_for_by_quoted_ids(tmp_path: Path) -> None:
    """Each id of the parents is asked for once, quoted so that it cannot change the path; null has no children."""

    def respond(request: Request) -> Answer:
        return as_json(PARENTS if request.path == "/items" else [{"n": 1}])

    with serving(respond) as api:
        described = children(api)
        found = collect(tmp_path, described, "children")
    assert [row["parent_id"] for row in found] == ["a/b?c#d", "..", "é"]
    assert {row["n"] for row in found} == {"1"}
    assert [request.path for request in api.requests] == [
        "/items",
        "/items/a%2Fb%3Fc%23d/children",
        "/items/%2E%2E/children",
        "/items/%C3%A9/children",
    ]


def test_children_continue_after_the_last_parent(tmp_path: Path) -> None:
    """An interrupted landing asks neither for the parents again, nor for the children that it has."""
    failures = iter([True])

    def respond(request: Request) -> Answer:
        if request.path == "/items":
            return as_json([{"id": "a"}, {"id": "b"}])
        if request.path == "/items/b/children" and next(failures, False):
            return 503, {}, b""
        return as_json([{"n": request.path}])

    with serving(respond) as api:
        described = children(api)
        with pytest.raises(Exception, match="answered 503"):
            land(tmp_path, described, "children")
        assert [row["parent_id"] for row in collect(tmp_path, described, "children")] == ["a", "b"]
    assert api.targets == ["/items", "/items/a/children", "/items/b/children", "/items/b/children"]


def test_a_window_without_bounds_cannot_be_asked_for(tmp_path: Path) -> None:
    """A path that needs a bound which the window lacks is a configuration error."""
    from executor_adapter.pipeline import Window

    described = tool("http://127.0.0.1:9", resource={"params": {"from": "{since}"}})
    with pytest.raises(Exception, match=r"asks for \{since\}, which this window does not have") as caught:
        land(tmp_path, described, window=Window())
    assert error_code_of(caught.value) == "CONFIGURATION_ERROR"


def test_a_landing_that_was_changed_is_not_read(tmp_path: Path) -> None:
    """A page that is not as it was received is refused when it is read."""
    with serving(lambda _: as_json(ONE)) as api:
        described = tool(api.url)
        landing = land(tmp_path, described)
    landing.path_of(landing.files[0]).write_bytes(b'[{"id": 2}]'[: landing.files[0].size])
    with pytest.raises(Exception, match="is not as it was received") as caught:
        rows(landing, described)
    assert error_code_of(caught.value) == "DATA_ERROR"
    found = find_landing(tmp_path, "api", "items", DAY)
    assert isinstance(found, Landing)


LARGE = """
import sys
from pathlib import Path
from tests.pipeline.rest import land, tool

landing = land(Path(sys.argv[1]), tool(sys.argv[2], timeout=60.0))
# Not ru_maxrss, which begins with what these tests have.
print(landing.rows, landing.files[0].size, Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


@pytest.mark.chaos
def test_a_body_of_300_megabytes_needs_little_memory(tmp_path: Path) -> None:
    """A list of 300 MB is received and checked object by object."""
    page = b", ".join(json.dumps({"id": n, "text": "x" * 400}).encode() for n in range(1000))

    def body() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n["
        for number in range(720):
            yield (b", " if number else b"") + page
        yield b"]"

    with serving(lambda _: Raw(body())) as api:
        command = [sys.executable, "-c", LARGE, str(tmp_path), api.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    count, size, peak = map(int, done.stdout.split())
    assert count == 720_000
    assert size > 300_000_000
    assert peak < 300_000
