"""Text in the form that databases and servers accept."""

from __future__ import annotations


def storable(text: str) -> str:
    """Replace what no database accepts in `text`.

    That is the character 0, and unpaired surrogates, which occur in names of files that are not encoded in UTF-8
    (`os.fsdecode`).
    """
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
