"""Text in the form that databases and servers accept, and that people read."""

from __future__ import annotations


def storable(text: str) -> str:
    """Replace what no database accepts in `text`.

    That is the character 0, and unpaired surrogates, which occur in names of files that are not encoded in UTF-8
    (`os.fsdecode`).
    """
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def size_text(size: int) -> str:
    """Return a number of bytes as people write it: 200 MiB, 1.5 GiB, 512 bytes."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB")):
        if abs(size) >= 1 << power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size:,} bytes"
