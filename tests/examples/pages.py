"""The blocks of code in README and in the pages of the documentation."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path

from tests.servers import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, *sorted(DOCS.rglob("*.md")))

_FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; `printed` is the block of text right below it, where there is one."""

    page: Path
    line: int
    language: str
    text: str
    printed: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def uses_prefect(self) -> bool:
        return re.search(r"^\s*(?:from|import) (?:executor_adapter\.)?prefect\b", self.text, re.MULTILINE) is not None


def blocks_of(page: Path) -> list[Block]:
    """Return every fenced block of one page, in order."""
    content = page.read_text()
    found = list(_FENCE.finditer(content))
    follows = {
        match.start(): later[2]
        for match, later in itertools.pairwise(found)
        if later[1] == "text" and not content[match.end() : later.start()].strip()
    }
    return [
        Block(page, content.count("\n", 0, match.start()) + 1, match[1], match[2], follows.get(match.start()))
        for match in found
    ]


def blocks(language: str) -> list[Block]:
    """Return every block in this language, of all pages."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]
