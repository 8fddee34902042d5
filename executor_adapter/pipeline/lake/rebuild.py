"""Replaces all files of a table at once: a new folder is made beside the old one, and takes its place.

Readers that list the folder before and open files after it may find one gone, which is an error they see; none sees
rows twice or too few. A journal finishes what a process began that died in between.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from executor_adapter.pipeline.disk import TEMPORARY, explained, sync_folder, writing
from executor_adapter.pipeline.lake.layout import Place

_JOURNAL = "rebuild.json"
_NEW = "new"


def rebuild(place: Place, files: Mapping[str, Path]) -> None:
    """Make a table of these files (window -> file): its own ones stay where they are named, all others go.

    The caller holds the table's lock alone. Files that are not the table's are moved.
    """
    new = place.state / _NEW
    with explained(new):
        shutil.rmtree(new, ignore_errors=True)
        for window, file in files.items():
            target = place.file_of(window, new)
            target.parent.mkdir(parents=True)
            if place.folder in file.parents:
                os.link(file, target)
            else:
                file.rename(target)
            sync_folder(target.parent)
        new.mkdir(exist_ok=True)
        sync_folder(new)
        with writing(place.state / _JOURNAL) as journal:
            journal.write(json.dumps({"windows": len(files)}).encode())
        _swap(place)


def needs_recovery(place: Place) -> bool:
    """Return whether a process died while it replaced the table."""
    return (place.state / _JOURNAL).exists()


def recover(place: Place) -> None:
    """Finish what a process began that died, or remove what it made of it. The caller holds the table's lock alone."""
    if needs_recovery(place):
        with explained(place.folder):
            _swap(place)
        return
    for leftover in (place.state / _NEW, *place.state.glob(f"{TEMPORARY}*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _swap(place: Place) -> None:
    new, old = place.state / _NEW, place.state / "old"
    if new.exists():
        if place.folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.folder.rename(old)
        place.folder.parent.mkdir(parents=True, exist_ok=True)
        new.rename(place.folder)
        sync_folder(place.folder.parent)
        sync_folder(place.state)
    (place.state / _JOURNAL).unlink(missing_ok=True)
    shutil.rmtree(old, ignore_errors=True)
