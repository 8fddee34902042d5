"""A table of the lake: its windows are written completely or not at all, once, and read by whatever reads Parquet."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from executor_adapter.exceptions import ConfigurationError
from executor_adapter.pipeline.disk import explained
from executor_adapter.pipeline.lake.merging import since_of
from executor_adapter.pipeline.lake.stored import Range, StoredTable, WindowEntry, workspace
from executor_adapter.pipeline.lake.writer import Writer
from executor_adapter.pipeline.text_rows import READ

_DATED = re.compile(r"\d{4}(-\d\d(-\d\d)?)?")


@dataclass(frozen=True, kw_only=True)
class LakeTable(StoredTable):
    """One table in one layer of a lake. Picklable; it opens nothing until it is used.

    Raises:
        ConfigurationError: the settings contradict one another.
    """

    @contextmanager
    def writing(
        self,
        window: str,
        *,
        fingerprint: str,
        collected_at: datetime | None = None,
        since: str | None = None,
        until: str | None = None,
        origin: str = "",
    ) -> Iterator[Writer]:
        """Write what a source has of a window; it is in the lake when the block ends, and not at all if it raises.

        What the window had before is merged with it by the table's key; rows of the range that are no longer there are
        kept, marked or deleted by the table's policy. `Writer.result` says what has become of the rows. If a newer
        answer is in the lake already, because another run was faster, this one is dropped.

        Args:
            window: the name of the window.
            fingerprint: identifies what the rows were made of.
            collected_at: when the source was asked, with a zone; None: now.
            since: the first value of the cursor column that was asked for; None: from the beginning.
            until: the first value that was asked for no more; None: all.
            origin: what the rows are of, such as the name of a file: of two answers of one origin the newer one wins,
                and of several origins the newer row with the same key.

        Raises:
            DataProcessingException: CONFIGURATION_ERROR, a column would be narrowed; DATA_ERROR, two columns have the
                same name, the key is missing, or there are rows outside the range.
            DataCollectionException: LOCKED, somebody else writes for too long, or has overtaken the range.
        """
        if (since, until) != (None, None) and self.cursor is None:
            raise ConfigurationError(f"{self}: since and until need a cursor: name the column that they bound")
        now = datetime.now(UTC)
        asked_at = (collected_at or now).astimezone(UTC).isoformat(timespec="microseconds")
        asked = Range(since=since, until=until, collected_at=asked_at, origin=origin, rows=0)
        entry = WindowEntry(window=window, rows=0, fingerprint=fingerprint, created_at=now.isoformat(), ranges=(asked,))
        with workspace(self.root) as space, ExitStack() as stack:
            writer = Writer(self, entry, asked, space)
            stack.callback(writer.discard)
            yield writer
            with self.exclusive():
                writer.publish()

    def next_since(self, window: str, look_back: float = 0, start: str | None = None) -> str | None:
        """Return from where a source is to be asked for what is new.

        It is the highest value up to which all was asked for; rows with that value too, since more may have come. A
        part after a gap, such as a range that was collected by itself, does not count.

        Args:
            window: the name of the window.
            look_back: how late rows may come: they are found again up to so far before: seconds for moments, days for
                dates, else a number.
            start: where it begins when nothing was collected, and before which it never does; None: from the beginning.
        """
        found, schema = self.find(window), self.schema()
        if found is None or found.watermark is None or self.cursor is None or schema is None:
            return start
        return since_of(found.watermark, schema.field(self.cursor).type, look_back, start)


def remove_windows(table: LakeTable, windows: Collection[str]) -> None:
    """Remove windows; those that the table does not have are passed over."""
    with table.exclusive():
        for window in windows:
            path = table.file_of(window)
            if path.exists():
                with explained(path):
                    path.unlink()
                    path.parent.rmdir()


def is_expired(window: str, before: date) -> bool:
    """Return whether a window that is named by a day, a month or a year was over before a day.

    Whoever collects asks it too, so that what has expired is not collected again. A window of another name never
    expires.
    """
    return not is_between(window.removeprefix(READ), before.isoformat(), None)


def is_between(window: str, since: str | None, until: str | None) -> bool:
    """Return whether a part of a window that is named by a day, a month or a year is in a range of days.

    A window of another name always is. The bounds are in ISO 8601; `until` is the first moment after the range.
    """
    if not _DATED.fullmatch(window):
        return True
    last = until and (datetime.fromisoformat(until) - timedelta(microseconds=1)).isoformat()
    return (since is None or window >= since[: len(window)]) and (last is None or window <= last[: len(window)])
