"""How an API divides its objects into pages, and what proves that a page is the last."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from executor_adapter.config.sections import Section
from executor_adapter.job import Count


class Paging(Section):
    """Says how the pages of an API are asked for. A page that is short is never taken for the last one.

    Pages by number or offset end with an empty page, by a total, or by a field that says whether there are more; those
    by cursor, URL or Link header where there is no next one.
    """

    by: Literal["none", "page", "offset", "cursor", "url", "link"] = "none"
    """`page`: numbers; `offset`: objects before the page; `cursor`: a value from the answer; `url`: an address from the
    answer; `link`: the Link header; `none`: one answer has everything."""
    size_param: str | None = "limit"
    """The parameter with the size of a page; null: it is not sent."""
    page_param: str = "page"
    """`page`: the parameter with the number of the page."""
    first_page: Count = Field(default=1, ge=0)
    """`page`: the number of the first page."""
    offset_param: str = "offset"
    """`offset`: the parameter with the number of objects before the page."""
    cursor_param: str = "cursor"
    """`cursor`: the parameter with the cursor."""
    next: str | None = None
    """`cursor`, `url`: the keys in the answer that lead to the next cursor or address, such as `meta.next`."""
    total: str | None = None
    """The keys in the answer that lead to the number of all objects; null: the answer has none."""
    more: str | None = None
    """The keys in the answer that lead to whether there are more pages; null: the answer does not say."""

    @model_validator(mode="after")
    def _check_next(self) -> Paging:
        if self.by in ("cursor", "url") and self.next is None:
            raise PydanticCustomError("next", "by: {by} must have the key next beside it", {"by": self.by})
        return self
