"""Text as databases and servers can hold it."""

from __future__ import annotations


def storable(text: str) -> str:
    """The text without what none of them takes: the character 0, and halves of a surrogate pair, which stand in the
    name of a file that is not encoded in UTF-8 (`os.fsdecode`)."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
