"""Parses dates and times as a format says, in whole columns: a day that does not exist is refused, not moved."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

ISO_DATE = "%Y-%m-%d"
ISO_TIME = (
    r"^(?P<Y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)[T ](?P<H>\d\d):(?P<M>\d\d)"
    r"(?::(?P<S>\d\d)(?:[.,](?P<f>\d{1,9}))?)?(?P<z>Z|[+-]\d\d(?::?\d\d)?)?$"
)

_PATTERNS = {
    "Y": r"(?P<Y>\d{4})",
    "y": r"(?P<y>\d\d)",
    "m": r"(?P<m>\d\d?)",
    "b": r"(?P<b>[A-Za-z]{3})",
    "d": r"(?P<d>\d\d?)",
    "j": r"(?P<j>\d{1,3})",
    "H": r"(?P<H>\d\d?)",
    "I": r"(?P<I>\d\d?)",
    "p": r"(?P<p>[AaPp][Mm])",
    "M": r"(?P<M>\d\d?)",
    "S": r"(?P<S>\d\d?)",
    "f": r"(?P<f>\d{1,9})",
    "z": r"(?P<z>Z|[+-]\d\d(?::?\d\d)?)",
    "%": "%",
}
_MONTHS = pa.array(["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"])
_DAYS_BEFORE = pa.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334], pa.int64())
_DAYS = pa.array([31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31], pa.int64())
_EPOCH_DAYS = 719_162
"""Days from 0001-01-01 to 1970-01-01."""


def parse_date(texts: pa.Array, format: str | None) -> tuple[pa.Array, pa.Array]:
    """Return the dates, and which of the texts are one as `format` has it (null: ISO 8601); nulls are right."""
    fields = _Fields(texts, _pattern(format or ISO_DATE))
    days, right = fields.days()
    return _only(pc.and_(right, pc.is_valid(texts)), days).cast(pa.int32()).cast(pa.date32()), right


def parse_timestamp(texts: pa.Array, format: str | None, zone: str | None) -> tuple[pa.Array, pa.Array]:
    """Return the moments in UTC, in microseconds, and which of the texts are one; nulls are right.

    A text without an offset is in `zone`; without `zone` it is not right. A local time that a change of the clocks
    leaves out or has twice is not right. Nor is one with more than microseconds.
    """
    fields = _Fields(texts, ISO_TIME if format is None else _pattern(format))
    days, right = fields.days()
    micros, in_day = fields.micros()
    offset, has_offset, offset_right = fields.offset()
    right = pc.and_(pc.and_(right, in_day), offset_right)
    total = pc.add(pc.multiply(days, 86_400_000_000), micros)
    local = _only(pc.and_(right, pc.is_valid(texts)), total).cast(pa.timestamp("us"))
    if zone is None:
        right = pc.and_(right, pc.or_(has_offset, pc.is_null(texts)))
        moments = local
    else:
        moments, exact = _in_zone(local, zone)
        right = pc.and_(right, pc.or_(has_offset, exact))
    with_offset = pc.subtract(local.cast(pa.int64()), pc.multiply(offset, 60_000_000)).cast(pa.timestamp("us"))
    chosen = pc.if_else(has_offset, with_offset, moments)
    return _only(right, chosen).cast(pa.timestamp("us", "UTC")), right


def _in_zone(local: pa.Array, zone: str) -> tuple[pa.Array, pa.Array]:
    """Return the moments of local times, and which of these are one moment only."""
    first, last = (
        pc.assume_timezone(local, zone, ambiguous=which, nonexistent=which).cast(pa.int64())
        for which in ("earliest", "latest")
    )
    return first.cast(pa.timestamp("us")), pc.fill_null(pc.equal(first, last), True)


class _Fields:
    """The fields of texts that match a pattern, as numbers."""

    def __init__(self, texts: pa.Array, pattern: str) -> None:
        self._texts = texts
        self._names = set(re.findall(r"\?P<(\w)>", pattern))
        self._matched = pc.fill_null(pc.match_substring_regex(texts, pattern), True)
        self._parts = pc.extract_regex(texts, pattern)

    def _text(self, name: str) -> pa.Array:
        return pc.fill_null(pc.struct_field(self._parts, name), "")

    def _number(self, name: str, otherwise: int = 0) -> pa.Array:
        if name not in self._names:
            return pa.repeat(pa.scalar(otherwise, pa.int64()), len(self._texts))
        text = self._text(name)
        return pc.if_else(pc.equal(text, ""), str(otherwise), text).cast(pa.int64())

    def days(self) -> tuple[pa.Array, pa.Array]:
        """Return the days since 1970-01-01, and which of them exist."""
        year = self._year()
        leap = pc.and_(_divides(year, 4), pc.or_(pc.invert(_divides(year, 100)), _divides(year, 400)))
        right = pc.and_(self._matched, pc.and_(pc.greater(year, 0), pc.less(year, 10_000)))
        if "j" in self._names:
            in_year = self._number("j", 1)
            longest = pc.if_else(leap, 366, 365)
        else:
            month, day = self._month(), self._number("d", 1)
            in_range = _between(month, 1, 12)
            right = pc.and_(right, in_range)
            place = pc.if_else(in_range, pc.subtract(month, 1), 0)
            february = pc.and_(leap, pc.equal(month, 2))
            right = pc.and_(right, pc.less_equal(day, pc.add(_DAYS.take(place), february.cast(pa.int64()))))
            after = pc.and_(leap, pc.greater(month, 2)).cast(pa.int64())
            in_year = pc.if_else(pc.greater(day, 0), pc.add(pc.add(_DAYS_BEFORE.take(place), day), after), 0)
            longest = pa.scalar(366, pa.int64())
        right = pc.and_(right, pc.and_(pc.greater(in_year, 0), pc.less_equal(in_year, longest)))
        before = pc.subtract(year, 1)
        leaps = pc.add(pc.subtract(pc.divide(before, 4), pc.divide(before, 100)), pc.divide(before, 400))
        days = pc.subtract(pc.add(pc.add(pc.multiply(before, 365), leaps), in_year), _EPOCH_DAYS + 1)
        return days, pc.or_(right, pc.is_null(self._texts))

    def _year(self) -> pa.Array:
        if "y" not in self._names:
            return self._number("Y", 1)
        short = self._number("y")
        return pc.add(short, pc.if_else(pc.less(short, 69), 2000, 1900))  # As POSIX has it.

    def _month(self) -> pa.Array:
        if "b" not in self._names:
            return self._number("m", 1)
        return pc.add(pc.fill_null(pc.index_in(pc.utf8_lower(self._text("b")), _MONTHS), -1).cast(pa.int64()), 1)

    def micros(self) -> tuple[pa.Array, pa.Array]:
        """Return the microseconds since midnight, and which of them are in a day and are whole."""
        hour, in_range = self._hour()
        minute, second = self._number("M"), self._number("S")
        right = pc.and_(in_range, pc.and_(_between(minute, 0, 59), _between(second, 0, 59)))
        total = pc.add(pc.multiply(pc.add(pc.multiply(hour, 60), minute), 60), second)
        total = pc.multiply(total, 1_000_000)
        if "f" in self._names:
            nanos = pc.utf8_rpad(self._text("f"), 9, "0").cast(pa.int64())
            right = pc.and_(right, _divides(nanos, 1000))
            total = pc.add(total, pc.divide(nanos, 1000))
        return total, pc.or_(right, pc.is_null(self._texts))

    def _hour(self) -> tuple[pa.Array, pa.Array]:
        if "I" not in self._names:
            hour = self._number("H")
            return hour, _between(hour, 0, 23)
        hour = self._number("I")
        afternoon = (
            pc.multiply(pc.equal(pc.utf8_lower(self._text("p")), "pm").cast(pa.int64()), 12)
            if "p" in self._names
            else 0
        )
        return pc.add(pc.if_else(pc.equal(hour, 12), 0, hour), afternoon), _between(hour, 1, 12)

    def offset(self) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Return the offsets from UTC in minutes, which texts have one, and which of these exist."""
        if "z" not in self._names:
            no = pa.repeat(pa.scalar(False), len(self._texts))
            return pa.repeat(pa.scalar(0, pa.int64()), len(self._texts)), no, pc.invert(no)
        text = self._text("z")
        digits = pc.replace_substring_regex(pc.replace_substring_regex(text, "^(Z|)$", "+0000"), "[+:-]", "")
        digits = pc.utf8_rpad(digits, 4, "0")
        hours = pc.utf8_slice_codeunits(digits, 0, 2).cast(pa.int64())
        minutes = pc.utf8_slice_codeunits(digits, 2, 4).cast(pa.int64())
        total = pc.add(pc.multiply(hours, 60), minutes)
        right = pc.and_(_between(hours, 0, 23), _between(minutes, 0, 59))
        return pc.if_else(pc.starts_with(text, "-"), pc.negate(total), total), pc.not_equal(text, ""), right


def _pattern(format: str) -> str:
    """Return a regular expression with a group for each directive of the format."""
    parts = re.split(r"%(.)", format)
    return "^" + "".join(_PATTERNS[part] if place % 2 else re.escape(part) for place, part in enumerate(parts)) + "$"


def _between(numbers: pa.Array, low: int, high: int) -> pa.Array:
    return pc.and_(pc.greater_equal(numbers, low), pc.less_equal(numbers, high))


def _divides(numbers: pa.Array, by: int) -> pa.Array:
    return pc.equal(pc.multiply(pc.divide(numbers, by), by), numbers)


def _only(right: pa.Array, values: pa.Array) -> pa.Array:
    return pc.if_else(right, values, pa.scalar(None, values.type))
