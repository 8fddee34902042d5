"""Paging ends only where the end is proven, whatever the server does with the pages, and never goes on for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor_adapter.config import Paging
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.sources.rest.pages import Answer, first_state, next_state, parameters
from tests.pipeline.hostile_server import Answer as HttpAnswer
from tests.pipeline.hostile_server import Request, as_json, serving
from tests.pipeline.rest import collect, failure, tool

ITEMS = [{"id": number} for number in range(7)]
IDS = [{"id": str(number)} for number in range(7)]
CAP = 3
"""Objects that the server sends at most, whatever is asked for."""


def cut(request: Request, start: int) -> list[dict[str, int]]:
    return ITEMS[start : start + min(CAP, int(request.query.get("limit", 99)))]


def by_offset(request: Request) -> HttpAnswer:
    return as_json(cut(request, int(request.query["offset"])))


def by_page(request: Request) -> HttpAnswer:
    return as_json({"data": {"items": cut(request, (int(request.query["page"]) - 1) * CAP)}})


def by_cursor(request: Request) -> HttpAnswer:
    start = int(request.query.get("after", 0))
    following = start + CAP if start + CAP < len(ITEMS) else None
    return as_json({"items": cut(request, start), "meta": {"next": following}})


def by_url(request: Request) -> HttpAnswer:
    start = int(request.query.get("start", 0))
    following = f"/items?start={start + CAP}" if start + CAP < len(ITEMS) else ""
    return as_json({"items": cut(request, start), "next": following})


def by_link(request: Request) -> HttpAnswer:
    start = int(request.query.get("start", 0))
    more = {"Link": f'</items?start={start + CAP}>; rel="next", </>; rel="first"'} if start + CAP < len(ITEMS) else {}
    return as_json(cut(request, start), **more)


@pytest.mark.parametrize(
    ("respond", "paging", "resource", "requests"),
    [
        (by_offset, {"by": "offset"}, {}, 4),
        (by_page, {"by": "page"}, {"records": "data.items"}, 4),
        (by_cursor, {"by": "cursor", "cursor_param": "after", "next": "meta.next"}, {"records": "items"}, 3),
        (by_url, {"by": "url", "next": "next"}, {"records": "items"}, 3),
        (by_link, {"by": "link"}, {}, 3),
    ],
)
def test_capped_and_short_pages_lose_nothing(
    tmp_path: Path, respond: Any, paging: dict[str, Any], resource: dict[str, Any], requests: int
) -> None:
    """A server that sends fewer objects than asked for is asked until it says that there are no more."""
    with serving(respond) as api:
        assert collect(tmp_path, tool(api.url, paging=paging, page_size=5, resource=resource)) == IDS
    assert len(api.requests) == requests


def test_a_page_without_the_parent_of_the_next_one_is_the_last(tmp_path: Path) -> None:
    """After one that has it: where the first page lacks it, `next` may be misspelt."""

    def respond(request: Request) -> HttpAnswer:
        is_first = "after" not in request.query
        return as_json({"items": ITEMS[:5], "meta": {"next": "x"}} if is_first else {"items": ITEMS[5:]})

    paging = {"by": "cursor", "cursor_param": "after", "next": "meta.next"}
    with serving(respond) as api:
        assert collect(tmp_path, tool(api.url, paging=paging, resource={"records": "items"})) == IDS


def test_an_error_on_a_later_page_is_not_the_last_page(tmp_path: Path) -> None:
    """An answer with status 200 that has neither rows nor the object around `next` says that something is wrong."""

    def respond(request: Request) -> HttpAnswer:
        return as_json({"error": "quota", "items": []} if request.query else {"items": ITEMS, "meta": {"next": "a"}})

    with serving(respond) as api:
        paging = {"by": "cursor", "cursor_param": "after", "next": "meta.next"}
        error = failure(tmp_path, tool(api.url, paging=paging, resource={"records": "items"}))
    assert "has nothing at meta.next: correct paging" in str(error)


def test_the_bounds_of_a_window_are_parameters(tmp_path: Path) -> None:
    """They stand beside the parameters of the paging."""

    def respond(request: Request) -> HttpAnswer:
        assert request.query["since"] == "2026-01-02T00:00:00+00:00"
        assert request.query["last"] == "2026-01-02T23:59:59.999999+00:00"
        start = int(request.query["offset"])
        return as_json(ITEMS[start : start + int(request.query["limit"])])

    params = {"since": "{since}", "last": "{last}"}
    with serving(respond) as api:
        described = tool(api.url, paging={"by": "offset"}, page_size=4, resource={"params": params})
        assert collect(tmp_path, described) == IDS


def test_a_total_ends_the_paging(tmp_path: Path) -> None:
    """Where the answer has a total, no empty page is asked for."""

    def respond(request: Request) -> HttpAnswer:
        start = int(request.query["offset"])
        return as_json({"items": cut(request, start), "total": 7})

    with serving(respond) as api:
        paging = {"by": "offset", "total": "total"}
        assert collect(tmp_path, tool(api.url, paging=paging, resource={"records": "items"})) == IDS
    assert len(api.requests) == 3


def test_missing_objects_are_an_error(tmp_path: Path) -> None:
    """An API that ends before its own total is not believed, and asked again later."""
    with serving(lambda request: as_json({"items": cut(request, int(request.query["offset"])), "total": 9})) as api:
        described = tool(api.url, paging={"by": "offset", "total": "total"}, resource={"records": "items"})
        error = failure(tmp_path, described)
    assert error.error_code == "API_ERROR"
    assert "said that there are 9 objects and sent 7" in str(error)


@pytest.mark.parametrize("total", [-1, 0])
def test_a_total_that_an_api_does_not_know_ends_no_paging(tmp_path: Path, total: int) -> None:
    """A total that is not above 0 is not believed: an empty page is the end."""
    with serving(lambda request: as_json({"items": cut(request, int(request.query["offset"])), "total": total})) as api:
        described = tool(api.url, paging={"by": "offset", "total": "total"}, resource={"records": "items"})
        assert collect(tmp_path, described) == IDS


@pytest.mark.parametrize("by", ["none", "offset", "page", "link"])
def test_a_total_below_the_objects_of_one_answer_is_an_error(tmp_path: Path, by: str) -> None:
    """It is not the number of all objects, but perhaps that of the pages: an end by it would leave objects out."""
    with serving(lambda _: as_json({"items": ITEMS, "total": 3})) as api:
        error = failure(tmp_path, tool(api.url, paging={"by": by, "total": "total"}, resource={"records": "items"}))
    assert (error.error_code, len(api.requests)) == ("DATA_ERROR", 1)
    assert "total is 3, and this answer alone has 7 objects: correct paging" in str(error)


@pytest.mark.parametrize(
    ("paging", "code"),
    [
        ({"by": "none"}, "CONFIGURATION_ERROR"),
        ({"by": "link"}, "API_ERROR"),
        ({"by": "url", "next": "next"}, "API_ERROR"),
        ({"by": "cursor", "next": "next"}, "API_ERROR"),
    ],
)
def test_an_end_that_the_answer_contradicts_is_an_error(tmp_path: Path, paging: dict[str, Any], code: str) -> None:
    """However pages are asked for, a total that was not reached is an error."""
    with serving(lambda _: as_json({"items": ITEMS, "next": None, "all": 9})) as api:
        error = failure(tmp_path, tool(api.url, paging=paging | {"total": "all"}, resource={"records": "items"}))
    assert error.error_code == code
    assert "said that there are 9 objects and sent 7" in str(error)


def test_a_total_that_nothing_was_said_of_is_believed(tmp_path: Path) -> None:
    """Without `paging`, an answer with fewer objects than it says that there are is refused."""
    totals = {"total_count": 7}
    with serving(lambda _: as_json({"items": ITEMS, **totals})) as api:
        described = tool(api.url, resource={"records": "items"})
        assert collect(tmp_path, described) == IDS
        totals["total_count"] = 8
        error = failure(tmp_path / "more", described)
    assert error.error_code == "CONFIGURATION_ERROR"
    assert "says that there are more pages (total_count): set paging" in str(error)


def test_the_same_page_for_ever_is_an_error(tmp_path: Path) -> None:
    """An API that does not know the paging sends its first page again, which is refused."""
    with serving(lambda _: as_json(ITEMS)) as api:
        for by in ("offset", "page"):
            asked = len(api.requests)
            error = failure(tmp_path, tool(api.url, paging={"by": by}))
            assert (error.error_code, len(api.requests) - asked) == ("REQUEST_ERROR", 2)
            assert f"the API may not know paging by {by}" in str(error)


@pytest.mark.parametrize("paging", [{"by": "offset"}, {"by": "page"}])
def test_objects_that_are_added_meanwhile_end_one_run_alone(tmp_path: Path, paging: dict[str, Any]) -> None:
    """Where as many new objects come before a page as it has, the same page comes again: the next run begins anew."""
    items = list(ITEMS)

    def respond(request: Request) -> HttpAnswer:
        size = int(request.query["limit"])
        start = int(request.query["offset"]) if "offset" in request.query else (int(request.query["page"]) - 1) * size
        page = items[start : start + size]
        if len(api.requests) == 2:
            items[:0] = [{"id": number} for number in range(100, 103)]
        return as_json(page)

    with serving(respond) as api:
        described = tool(api.url, paging=paging, page_size=3)
        assert failure(tmp_path, described).error_code == "REQUEST_ERROR"
        found = collect(tmp_path, described)
    assert found == [{"id": str(number)} for number in (100, 101, 102)] + IDS


def test_a_circle_of_pages_is_an_error(tmp_path: Path) -> None:
    """A cursor or an address that was there before is refused."""
    circle = {None: "a", "a": "b", "b": "a"}

    def respond(request: Request) -> HttpAnswer:
        following = circle[request.query.get("cursor")]
        return as_json({"items": ITEMS, "next": following})

    with serving(respond) as api:
        described = tool(api.url, paging={"by": "cursor", "next": "next"}, resource={"records": "items"})
        error = failure(tmp_path, described)
    assert (error.error_code, len(api.requests)) == ("DATA_ERROR", 3)
    assert "names a next page that was there before: {'cursor': 'a'}" in str(error)


def test_a_circle_of_addresses_shows_no_secret(tmp_path: Path) -> None:
    """The address of a next page may have a token."""
    with serving(lambda _: as_json({"items": ITEMS, "next": "/items?access_token=s3cr3t"})) as api:
        described = tool(api.url, paging={"by": "url", "next": "next"}, resource={"records": "items"})
        error = failure(tmp_path, described)
    assert "names a next page that was there before" in str(error)
    assert "s3cr3t" not in str(error)


def test_endless_pages_end_at_the_limit(tmp_path: Path) -> None:
    """An API that always has another page ends as an error after `pages` pages."""
    with serving(lambda request: as_json([{"id": request.query["offset"]}])) as api:
        error = failure(tmp_path, tool(api.url, paging={"by": "offset"}, pages=5))
    assert (error.error_code, len(api.requests)) == ("CONFIGURATION_ERROR", 5)
    assert "items 2026-01-02 has more than pages=5 pages: raise pages, or correct paging" in str(error)


def test_pages_that_nothing_was_said_of_are_an_error(tmp_path: Path) -> None:
    """Without `paging`, an answer that says that there are more pages is refused."""
    for respond in (by_link, by_url):
        with serving(respond) as api:
            described = tool(api.url, resource={} if respond is by_link else {"records": "items"})
            error = failure(tmp_path, described)
        assert error.error_code == "CONFIGURATION_ERROR"
        assert "says that there are more pages" in str(error)


def test_a_next_page_at_another_origin_is_refused(tmp_path: Path) -> None:
    """The credentials would go there, so the address is refused and named."""
    with serving(lambda _: as_json(ITEMS, Link='<http://other.example/items>; rel="next"')) as api:
        error = failure(tmp_path, tool(api.url, paging={"by": "link"}))
    assert error.error_code == "CONFIGURATION_ERROR"
    assert "is at another host, http://other.example/items: name it in allowed_hosts" in str(error)


def test_wrong_paging_is_a_configuration_error(tmp_path: Path) -> None:
    """Keys that are not there or no number are named; a cursor needs `next`."""
    with serving(lambda _: as_json({"items": ITEMS, "meta": None, "total": "many"})) as api:
        for proof, code, said in (
            ({"by": "cursor", "next": "meta.next"}, "CONFIGURATION_ERROR", "has nothing at meta.next"),
            ({"by": "offset", "total": "total"}, "DATA_ERROR", "total is 'many', not a number"),
        ):
            error = failure(tmp_path, tool(api.url, paging=proof, resource={"records": "items"}))
            assert error.error_code == code
            assert said in str(error)
    with pytest.raises(ConfigurationError, match="by: cursor must have the key next beside it"):
        Paging(by="cursor")


@given(sizes=st.lists(st.integers(1, 5), max_size=12), asked=st.integers(1, 5), by=st.sampled_from(["offset", "page"]))
def test_every_object_is_asked_for_once(sizes: list[int], asked: int, by: Any) -> None:
    """Whatever size each page has, the pages follow one another without a gap, up to the empty one."""
    paging = Paging(by=by)
    state = first_state(paging)
    position = 0
    for number, size in enumerate([*sizes, 0]):
        assert parameters(paging, state, asked) == {
            "limit": asked,
            **({"offset": position} if by == "offset" else {"page": number + 1}),
        }
        following = next_state(paging, state, Answer(origin="x", rows=size))
        position += size
        assert (following is None) == (size == 0)
        state = following or state
