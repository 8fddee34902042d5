"""What is asked for next, and what proves that a page was the last. Pure functions over what an answer says.

The state of the paging is JSON, so that it is kept with each page, and an interrupted landing continues from it:
{"page": 3}, {"offset": 400}, {"cursor": "..."} or {"url": "..."}, and in each {"rows": the objects before this page}.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from executor_adapter.config import Paging
from executor_adapter.exceptions import DataCollectionException
from executor_adapter.pipeline.errors import configuration_error, data_error

State = dict[str, Any]

HINTS = ("next", "next_page", "next_url", "next_cursor", "nextPageToken", "next_page_token", "has_more", "hasMore")
"""Keys of an answer that say that there are more pages, where the settings do not speak of any."""
TOTALS = ("total_count", "totalCount", "total_results", "totalResults")
"""Keys of an answer with the number of all objects, likewise. `total` alone may be a sum of money."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one answer says of the paging."""

    origin: str
    """The URL, for messages."""
    rows: int
    """The objects in it."""
    document: Any = None
    """The parsed JSON; None where it is a list, or not JSON."""
    link: str | None = None
    """The next address in the Link header."""


def first_state(paging: Paging) -> State:
    """Return the state of the first page."""
    start: dict[str, State] = {"page": {"page": paging.first_page}, "offset": {"offset": 0}}
    return {"rows": 0} | start.get(paging.by, {})


def parameters(paging: Paging, state: State, size: int) -> dict[str, int | str]:
    """Return the parameters of the request for a page; those of an address are in it already."""
    if "url" in state or paging.by == "none":
        return {}
    sent: dict[str, int | str] = {} if paging.size_param is None else {paging.size_param: size}
    match paging.by:
        case "page":
            sent[paging.page_param] = state["page"]
        case "offset":
            sent[paging.offset_param] = state["offset"]
        case "cursor" if "cursor" in state:
            sent[paging.cursor_param] = state["cursor"]
    return sent


def next_state(paging: Paging, state: State, answer: Answer) -> State | None:
    """Return the state of the next page; None where this one is proven to be the last.

    Raises:
        DataCollectionException: CONFIGURATION_ERROR, there is more than the settings speak of; API_ERROR, the objects
            end before the total; DATA_ERROR, the total is no number, or below the objects of this answer.
    """
    rows = state["rows"] + answer.rows
    match paging.by:
        case "none":
            _check_alone(answer)
            _check_end(paging, rows, answer)
            return None
        case "page" | "offset":
            if _is_last(paging, rows, answer):
                return None
            # What the server sent counts, not what was asked for: it may cap the size of a page.
            step = {"page": state["page"] + 1} if paging.by == "page" else {"offset": state["offset"] + answer.rows}
            return {"rows": rows} | step
        case "cursor" | "url" | "link":
            # Where the last page has no object around it, that page has rows: an error has none.
            is_needed = state.keys() == {"rows"} or not answer.rows
            found = answer.link if paging.by == "link" else _found(answer, paging.next or "", is_needed=is_needed)
            if found in _NOTHING:
                _check_end(paging, rows, answer)
                return None
            return {"rows": rows, "cursor" if paging.by == "cursor" else "url": str(found)}


_NOTHING = (None, "", False)


def _is_last(paging: Paging, rows: int, answer: Answer) -> bool:
    if answer.rows == 0:
        _check_end(paging, rows, answer)
        return True
    return 0 < _total(paging, answer) <= rows


def _check_end(paging: Paging, rows: int, answer: Answer) -> None:
    """Refuse an end that the answer itself contradicts."""
    if rows < (total := _total(paging, answer)):
        # One answer that was to be all of it is as short when it is asked for again.
        code = "CONFIGURATION_ERROR" if paging.by == "none" else "API_ERROR"
        said = f"{answer.origin} said that there are {total} objects and sent {rows}: check paging"
        raise DataCollectionException(said, error_code=code)


def _check_alone(answer: Answer) -> None:
    hint = "a Link header" if answer.link else None
    if isinstance(answer.document, dict):
        hint = hint or next((key for key in HINTS if answer.document.get(key) not in _NOTHING), None)
        hint = hint or next((key for key in TOTALS if _is_above(answer.document.get(key), answer.rows)), None)
    if hint is not None:
        raise configuration_error(f"{answer.origin} says that there are more pages ({hint}): set paging")


def _is_above(value: Any, rows: int) -> bool:
    """Return whether a value of a document, in which numbers are text as they are written, is a higher number."""
    return isinstance(value, int | str) and str(value).isdecimal() and int(value) > rows


def _found(answer: Answer, keys: str, *, is_needed: bool = True) -> Any:
    """Return what is at the keys; a key that is missing at the end is like null, and any where none is needed."""
    *before, last = keys.split(".")
    found = answer.document
    for key in before:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, dict) and is_needed:
        raise configuration_error(f"{answer.origin} has nothing at {keys}: correct paging")
    return found.get(last) if isinstance(found, dict) else None


def _total(paging: Paging, answer: Answer) -> int:
    """Return how many objects there are in all; 0 or less where that is not known."""
    found = 0 if paging.total is None else _found(answer, paging.total)
    try:
        total = int(found)
    except (TypeError, ValueError):
        raise data_error(f"{answer.origin}: {paging.total} is {found!r}, not a number: correct paging") from None
    if 0 < total < answer.rows:  # It may be the number of pages, by which others would be left out.
        said = f"{paging.total} is {total}, and this answer alone has {answer.rows} objects"
        raise data_error(f"{answer.origin}: {said}: correct paging")
    return total
