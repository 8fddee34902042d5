"""README is short, sells the project with its first block, and links to what is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.examples.pages import README, blocks_of
from tests.servers import ROOT

MAX_BYTES = 6 * 1024


def test_the_first_block_sells_it() -> None:
    """A reader sees what it is for before the first line of prose about it."""
    first = blocks_of(README)[0]
    assert first.language == "python"
    assert "@job_task" in first.text
    assert first.line <= 10


def test_readme_is_short() -> None:
    """It has at most 6 KB, with three examples; the rest is in the documentation."""
    assert len(README.read_bytes()) <= MAX_BYTES
    assert len([block for block in blocks_of(README) if block.language == "python"]) == 3


def test_every_target_that_is_named_exists() -> None:
    """`make WORD` in README is a target of the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README.read_text(), re.MULTILINE)) <= targets


def test_every_link_leads_somewhere() -> None:
    """The files and the headings that README and the other pages of the clone's root link to are there."""
    broken = [
        (page.name, link)
        for page in (README, ROOT / "CONTRIBUTING.md", ROOT / "ARCHITECTURE.md")
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text())
        if not re.match(r"https?:", link) and not _leads_somewhere(page, link)
    ]
    assert broken == []
    assert "](docs/quickstart.md)" in README.read_text()


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not anchor or anchor in _anchors(file))


def _anchors(file: Path) -> set[str]:
    """The ids of a page's headings, as the site and code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
