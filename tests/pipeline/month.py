"""Sources that change from day to day, and the dictionary of what the lake has to have after each run.

Each `Twin` is a table of the configuration. `happen` changes its source; `collected` notes what a run finds there, and
so what the tables have from then on. Nothing of the product is used for that.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import sqlalchemy as sa

from tests.api_server import Answer, as_json

Row = dict[str, Any]
Windows = dict[str, list[Row]]
ITEMS = ("pen", "ink", "map", "cup")


class Clock:
    """The time of the simulation: it moves a little with each look at it."""

    def __init__(self, start: datetime) -> None:
        self.at = start

    def now(self) -> datetime:
        self.at += timedelta(milliseconds=1)
        return self.at


@dataclass
class Expected:
    """What the lake has to have of a table."""

    raw: Windows
    unfit: Counter[str]
    """Lines and rows that do not fit, by delivery."""
    processed: Windows
    rejected: Counter[str]
    """Rows that steps reject, by window."""


class Twin:
    """A table and its source; a simple one is received as it is, and its steps note the version of the rules."""

    tool = name = ""
    chances: tuple[tuple[float, str], ...] = ()
    """What can happen at the source, and how likely it is on a day."""

    def __init__(self, clock: Clock, chance: Random) -> None:
        self.clock, self.chance, self.rules = clock, chance, 1
        self.unfit: Counter[str] = Counter()

    @property
    def full_name(self) -> str:
        return f"{self.tool}.{self.name}"

    def settings(self) -> Row:
        """Return how the configuration describes the table today."""
        return {"steps": [{"sql": f"select *, {self.rules} as rules from {{rows}}"}]}

    def happen(self) -> list[str]:
        """Let a day pass at the source, and return what has happened in words."""
        done = []
        for likely, name in self.chances:
            if self.chance.random() < likely and (said := getattr(self, name)()) is not False:
                done.append(f"{self.name}: {name}{f' {said}' if said else ''}")
        return done

    def change_rules(self) -> None:
        self.rules += 1

    def fails(self) -> bool:
        """Return whether some of it cannot be collected today."""
        return False

    def collected(self) -> None:
        """Note what a run finds at the source."""

    def rebuilt(self) -> None:
        """Note what the table has when it was made anew from its landings."""

    def rows(self) -> Windows:
        """Return the collected rows."""
        raise NotImplementedError

    def process(self, window: str, rows: list[Row], others: Mapping[str, Windows]) -> tuple[list[Row], int]:
        """Return what the steps make of a window, and how many rows they reject."""
        return [{**row, "rules": self.rules} for row in rows], 0

    def expected(self, others: Mapping[str, Windows]) -> Expected:
        raw = {window: rows for window, rows in self.rows().items() if rows}
        processed, rejected = {}, Counter[str]()
        for window, rows in raw.items():
            processed[window], rejected[window] = self.process(window, rows, others)
        return Expected(raw, +self.unfit, {name: rows for name, rows in processed.items() if rows}, +rejected)


# --- files ---


@dataclass
class Delivery:
    """A file as it is in the inbox, or as it was landed."""

    lines: list[Row]
    """The texts of each row by column."""
    columns: tuple[str, ...]
    broken: bool = False
    """Whether it has a column twice."""
    landed_at: datetime | None = None

    def text(self) -> str:
        columns = [*self.columns, *self.columns[: self.broken]]
        lines = [",".join(str(line.get(name, "")) for name in columns) for line in self.lines]
        return "\n".join([",".join(columns), *lines]) + "\n"


class Files(Twin):
    """Files in an inbox."""

    tool = "shop"
    columns: tuple[str, ...] = ()

    def __init__(self, clock: Clock, chance: Random, inbox: Path) -> None:
        super().__init__(clock, chance)
        self.inbox = inbox
        self.there: dict[str, Delivery] = {}
        self.landed: dict[str, Delivery] = {}
        self.numbers = 0
        inbox.mkdir(exist_ok=True)

    def put(self, name: str, delivery: Delivery) -> None:
        self.there[name] = delivery
        (self.inbox / name).write_text(delivery.text())
        moment = self.clock.now().timestamp() - 3600
        os.utime(self.inbox / name, (moment, moment))

    def any_file(self) -> str:
        return self.chance.choice(sorted(self.there))

    def changed(self, name: str, lines: list[Row]) -> None:
        self.put(name, Delivery(lines, self.there[name].columns))

    def land(self) -> list[str]:
        """Note which files are received, and return the names of those that are there, in their order."""
        names = sorted(self.there)
        for name in names:
            there, landed = self.there[name], self.landed.get(name)
            if landed is None or landed.text() != there.text():
                self.landed[name] = Delivery(list(there.lines), there.columns, there.broken, self.clock.now())
        return names


def typed(line: Row) -> Row | None:
    """Return a line of sales with its types; None where it does not fit."""
    amount = str(line.get("amount", ""))
    if not amount.lstrip("-").isdigit():
        return None
    row = {"id": int(line["id"]), "day": date.fromisoformat(line["day"]), "item": line["item"], "amount": int(amount)}
    return {**row, "note": line.get("note") or None}


@dataclass
class Stored:
    """A row in the lake, and when its delivery was landed."""

    row: Row
    landed_at: datetime


class Sales(Files):
    """Files whose rows are merged by their key into days; steps reject, drop and join."""

    name = "sales"
    columns = ("id", "day", "item", "amount")
    chances = (
        (0.8, "come"),
        (0.3, "come_late"),
        (0.3, "correct"),
        (0.15, "go_back"),
        (0.15, "come_broken"),
        (0.15, "spoil"),
        (0.15, "repeat"),
        (0.1, "drift"),
        (0.1, "change_rules"),
        (0.1, "take_away"),
        (0.1, "rename"),
        (0.1, "read_otherwise"),
    )

    def __init__(self, clock: Clock, chance: Random, inbox: Path) -> None:
        super().__init__(clock, chance, inbox)
        self.days: dict[str, dict[int, Stored]] = {}
        self.drifted = False
        self.read: dict[str, str] = {}
        """Of each file the text that is in the lake."""
        self.before: dict[str, Delivery] = {}
        self.ids = 0
        self.nulls: tuple[str, ...] = ()
        self.come()

    def settings(self) -> Row:
        item: Row = {"type": "text", "nulls": list(self.nulls)}
        columns: Row = {"id": "integer", "day": "date", "item": item, "amount": {"type": "integer"}}
        rule = f"select *, case when amount > {100 - self.rules} then 'too much' end as _reason from {{rows}}"
        return {
            "file": "sales-*.csv",
            "key": "id",
            "partition": "day",
            "period": "day",
            "schema": {"columns": columns},
            "steps": [
                {"sql": rule},
                {"sql": "select * from {rows} where item <> 'void'"},
                {"enrich": {"table": "shop.stock", "on": "item", "columns": ["price"]}},
            ],
        }

    def line(self, day: date) -> Row:
        self.ids += 1
        item = self.chance.choice((*ITEMS, "void"))
        amount = self.chance.choice(("x", *range(1, 110, 7)))
        line: Row = {"id": self.ids, "day": day.isoformat(), "item": item, "amount": amount}
        return {**line, "note": f"n{self.ids}"} if self.drifted else line

    def _come(self, day: date, broken: bool = False) -> str:
        self.numbers += 1
        name = f"sales-{self.numbers:03}.csv"
        days = [day - timedelta(days=self.chance.choice((0, 0, 1))) for _ in range(self.chance.randint(1, 5))]
        columns = (*self.columns, "note") if self.drifted else self.columns
        self.put(name, Delivery([self.line(each) for each in days], columns, broken))
        return name

    def come(self) -> str:
        return self._come(self.clock.at.date())

    def come_late(self) -> str:
        return self._come(self.clock.at.date() - timedelta(days=self.chance.randint(2, 9)))

    def come_broken(self) -> str:
        return self._come(self.clock.at.date(), broken=True)

    def correct(self) -> str:
        """A file comes again with another content; some of its rows are gone, which stay in the lake."""
        name = self.any_file()
        self.before[name] = self.there[name]
        lines = [
            {**line, "amount": self.chance.randint(1, 120)}
            for line in self.there[name].lines
            if self.chance.random() < 0.8
        ]
        self.changed(name, [*lines, self.line(self.clock.at.date())])
        return name

    def go_back(self) -> str | bool:
        """A file comes again as it was before its correction."""
        found = sorted(self.before.keys() & self.there.keys())
        if not found:
            return False
        name = self.chance.choice(found)
        self.put(name, self.before.pop(name))
        return name

    def spoil(self) -> str:
        """A file comes again with a value that does not fit."""
        name = self.any_file()
        lines = [dict(line) for line in self.there[name].lines]
        self.chance.choice(lines or [{}])["amount"] = "much"
        self.changed(name, lines)
        return name

    def repeat(self) -> str | bool:
        """A new file has a row that another one has too."""
        lines = [line for each in self.there.values() for line in each.lines]
        if not lines:
            return False
        line = {**self.chance.choice(lines), "amount": self.chance.randint(1, 120)}
        self.numbers += 1
        name = f"sales-{self.numbers:03}.csv"
        self.put(name, Delivery([line], (*self.columns, "note") if "note" in line else self.columns))
        return name

    def drift(self) -> None:
        """From now on files have one more column, which is not declared and kept as text."""
        self.drifted = True

    def read_otherwise(self) -> str:
        """The settings change: some items are read as null, and all files that are there are read again."""
        self.nulls = tuple(self.chance.sample(ITEMS, self.chance.randint(0, 2)))
        self.read.clear()
        return " ".join(self.nulls)

    def take_away(self) -> str | bool:
        if len(self.there) < 2:
            return False
        name = self.any_file()
        del self.there[name]
        (self.inbox / name).unlink()
        return name

    def rename(self) -> str:
        name = self.any_file()
        self.numbers += 1
        new = f"sales-{self.numbers:03}.csv"
        self.put(new, self.there.pop(name))
        (self.inbox / name).unlink()
        return f"{name} {new}"

    def fails(self) -> bool:
        return any(each.broken for each in self.there.values())

    def collected(self) -> None:
        for name in self.land():
            landed = self.landed[name]
            if not landed.broken and self.read.get(name) != landed.text():
                self._merge(name, landed)

    def rebuilt(self) -> None:
        self.days.clear()
        self.unfit.clear()
        for name, landed in sorted(self.landed.items(), key=lambda each: each[1].landed_at or self.clock.at):
            self._merge(name, landed)

    def _merge(self, name: str, landed: Delivery) -> None:
        assert landed.landed_at is not None
        self.read[name], self.unfit[name] = landed.text(), 0
        for line in landed.lines:
            row = typed({name: line.get(name, "") for name in landed.columns})
            if row is None:
                self.unfit[name] += 1
                continue
            row["item"] = None if row["item"] in self.nulls else row["item"]
            day = self.days.setdefault(row["day"].isoformat(), {})
            known = day.get(row["id"])
            if known is None or known.landed_at <= landed.landed_at:
                day[row["id"]] = Stored(row, landed.landed_at)

    def rows(self) -> Windows:
        return {day: [each.row for each in stored.values()] for day, stored in self.days.items()}

    def process(self, window: str, rows: list[Row], others: Mapping[str, Windows]) -> tuple[list[Row], int]:
        prices = {row["item"]: row["price"] for row in others["shop.stock"].get("all", ())}
        fit = [row for row in rows if row["amount"] <= 100 - self.rules]
        kept = [{**row, "price": prices.get(row["item"])} for row in fit if row["item"] not in (None, "void")]
        return kept, len(rows) - len(fit)


class Stock(Files):
    """One file that is replaced as a whole; it may have no row, and an item twice."""

    name = "stock"
    chances = ((0.4, "change"), (0.08, "empty"), (0.1, "double"), (0.06, "widen"), (0.05, "come_broken"))

    def __init__(self, clock: Clock, chance: Random, inbox: Path) -> None:
        super().__init__(clock, chance, inbox)
        self.places = 2
        self.all: list[Row] = []
        self.change()

    def settings(self) -> Row:
        columns = {"item": "text", "price": f"decimal({8 + self.places}, {self.places})"}
        steps = [{"deduplicate": {"key": "item"}}]
        return {"file": "stock.csv", "schema": {"columns": columns}, "steps": steps}

    def change(self) -> None:
        lines = [{"item": each, "price": f"{self.chance.randint(1, 999) / 100:.2f}"} for each in ITEMS]
        self.put("stock.csv", Delivery(self.chance.sample(lines, 3), ("item", "price")))

    def empty(self) -> bool:
        # What sales are joined with has had rows at least once.
        if self.all:
            self.changed("stock.csv", [])
        return False

    def double(self) -> None:
        lines = self.there["stock.csv"].lines
        self.changed("stock.csv", [*lines, *({**line, "price": "1.25"} for line in lines[:1])])

    def widen(self) -> None:
        """Prices get more places than the table has had."""
        self.places += 1

    def come_broken(self) -> bool:
        if self.all:
            self.put("stock.csv", Delivery(list(self.there["stock.csv"].lines), ("item", "price"), broken=True))
        return False

    def fails(self) -> bool:
        return self.there["stock.csv"].broken

    def collected(self) -> None:
        self.land()
        if not self.fails():
            self.all = [
                {"item": line["item"], "price": Decimal(line["price"])} for line in self.there["stock.csv"].lines
            ]

    def rebuilt(self) -> None:
        self.collected()

    def rows(self) -> Windows:
        return {"all": self.all}

    def process(self, window: str, rows: list[Row], others: Mapping[str, Windows]) -> tuple[list[Row], int]:
        return list({row["item"]: row for row in rows}.values()), 0


class Visits(Files):
    """Files that are windows of their own; those that vanish stay or go."""

    name = "visits"
    chances = (
        (0.6, "come"),
        (0.2, "correct"),
        (0.2, "take_away"),
        (0.3, "bring_back"),
        (0.1, "empty"),
        (0.1, "change_rules"),
    )

    def __init__(self, clock: Clock, chance: Random, inbox: Path) -> None:
        super().__init__(clock, chance, inbox)
        self.policy = chance.choice(("keep", "keep", "delete"))
        self.windows: dict[str, list[Row]] = {}
        self.read: dict[str, str] = {}
        self.gone: dict[str, Delivery] = {}
        self.come()

    def settings(self) -> Row:
        columns = {"who": "text", "times": "integer"}
        given = {"file": "visits-*.csv", "vanished_windows": self.policy, "schema": {"columns": columns}}
        return super().settings() | given

    def lines(self) -> list[Row]:
        return [
            {"who": self.chance.choice("abc"), "times": self.chance.choice((1, 2, "often"))}
            for _ in range(self.chance.randint(1, 4))
        ]

    def come(self) -> str:
        self.numbers += 1
        name = f"visits-{self.numbers:03}.csv"
        self.put(name, Delivery(self.lines(), ("who", "times")))
        return name

    def correct(self) -> str:
        name = self.any_file()
        self.changed(name, self.lines())
        return name

    def empty(self) -> str:
        name = self.any_file()
        self.changed(name, [])
        return name

    def take_away(self) -> str | bool:
        if len(self.there) < 2:
            return False
        name = self.any_file()
        self.gone[name] = self.there.pop(name)
        (self.inbox / name).unlink()
        return name

    def bring_back(self) -> str | bool:
        if not self.gone:
            return False
        name = self.chance.choice(sorted(self.gone))
        self.put(name, self.gone.pop(name))
        return name

    def collected(self) -> None:
        names = self.land()
        for name in names:
            self._read(name)
        for name in set(self.windows) - set(names):
            if self.policy == "delete":
                del self.windows[name], self.unfit[name]

    def _read(self, name: str) -> None:
        fit = [line for line in self.landed[name].lines if line["times"] != "often"]
        self.windows[name] = fit
        self.unfit[name] = len(self.landed[name].lines) - len(fit)

    def rebuilt(self) -> None:
        self.windows.clear()
        self.unfit.clear()
        for name in self.landed:
            self._read(name)

    def rows(self) -> Windows:
        return self.windows


# --- an API ---


class Club:
    """A server of people by the day on which they came, with the states of each, of prices, and of news."""

    def __init__(self, clock: Clock, chance: Random) -> None:
        self.clock, self.chance = clock, chance
        self.people: dict[str, Row] = {}
        self.prices: dict[str, Row] = {}
        self.news: dict[str, Row] = {}
        self.down: set[str] = set()
        self.highest = 0

    def __call__(self, path: str, body: Any) -> Answer:
        place, query = urlsplit(path).path, {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        if any(each in f"{place} {query.get('since', '')}" for each in self.down):
            return 503, {}, b""
        match place:
            case "/people":
                found = self.people_between(query["since"], query["until"])
            case "/states":
                found = states_of(query["person"])
            case "/prices":
                found = list(self.prices.values())
            case _:
                found = [each for each in self.news.values() if each["n"] >= int(query["since"])]
        offset = int(query["offset"])
        return as_json(found[offset : offset + int(query["limit"])])

    def people_between(self, since: str, until: str) -> list[Row]:
        return [each for each in self.people.values() if since <= each["came"] < until]

    def people_of(self, day: date) -> list[Row]:
        return self.people_between(start_of(day).isoformat(), start_of(day + timedelta(days=1)).isoformat())


def states_of(person: str) -> list[Row]:
    names = ("asked", "paid")[: int(person[1:]) % 3]
    return [{"id": f"{person}-{name}", "name": name} for name in names]


class Resource(Twin):
    """A resource of the API."""

    tool = "club"

    def __init__(self, clock: Clock, chance: Random, api: Club) -> None:
        super().__init__(clock, chance)
        self.api = api

    def is_down(self, since: str = "") -> bool:
        return any(each in f"/{self.name} {since}" for each in self.api.down)

    def fails(self) -> bool:
        return self.is_down()


class Days(Resource):
    """A resource that is asked for by day."""

    def __init__(self, clock: Clock, chance: Random, api: Club) -> None:
        super().__init__(clock, chance, api)
        self.first: date | None = None
        self.final: set[date] = set()
        self.days: dict[str, dict[str, Row]] = {}

    def asked(self) -> list[date]:
        """Return the days for which a run asks: those that none has asked for after their end."""
        today = self.clock.at.date()
        first = self.first or today - timedelta(days=1)
        return [
            day
            for number in range((today - first).days + 1)
            if (day := first + timedelta(days=number)) not in self.final
        ]

    def fails(self) -> bool:
        return any(self.is_down(day.isoformat()) for day in self.asked())

    def note_final(self, day: date) -> None:
        if self.clock.at >= start_of(day + timedelta(days=1)) + timedelta(hours=1):
            self.final.add(day)

    def rows(self) -> Windows:
        return {day: list(found.values()) for day, found in self.days.items()}


def start_of(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


class People(Days):
    """Who came on a day, and late entries of days before."""

    name = "people"
    chances = ((0.9, "come"), (0.3, "come_late"), (0.3, "change"), (0.1, "change_rules"))

    def __init__(self, clock: Clock, chance: Random, api: Club) -> None:
        super().__init__(clock, chance, api)
        self.numbers = 0
        self.found: dict[str, list[str]] = {}
        """The people that the last answer for each day had."""

    def settings(self) -> Row:
        given: Row = {"path": "/people", "params": {"since": "{since}", "until": "{until}"}}
        return super().settings() | given

    def _come(self, day: date) -> None:
        for _ in range(self.chance.randint(1, 3)):
            self.numbers += 1
            key = f"p{self.numbers}"
            came = start_of(day) + timedelta(seconds=self.chance.randint(0, 86_399))
            self.api.people[key] = {"id": key, "came": came.isoformat(), "age": str(self.chance.randint(1, 9))}

    def come(self) -> None:
        self._come(self.clock.at.date())

    def come_late(self) -> None:
        self._come(self.clock.at.date() - timedelta(days=self.chance.randint(1, 3)))

    def change(self) -> str | bool:
        if not self.api.people:
            return False
        key = self.chance.choice(sorted(self.api.people))
        self.api.people[key]["age"] += "0"
        return key

    def collected(self) -> None:
        days = self.asked()
        self.first = self.first or days[0]
        for day in days:
            if not self.is_down(day.isoformat()):
                found = self.api.people_between(
                    start_of(day).isoformat(), start_of(day + timedelta(days=1)).isoformat()
                )
                self.found[day.isoformat()] = [row["id"] for row in found]
                self.days.setdefault(day.isoformat(), {}).update({row["id"]: dict(row) for row in found})
                self.note_final(day)


class States(Days):
    """The states of each of the people, which never change."""

    name = "states"
    chances = ((0.1, "change_rules"),)

    def __init__(self, clock: Clock, chance: Random, api: Club, people: People) -> None:
        super().__init__(clock, chance, api)
        self.people = people

    def settings(self) -> Row:
        return super().settings() | {"path": "/states", "params": {"person": "{id}"}, "for_each": "people"}

    def asked_for(self, day: date) -> list[str] | None:
        """Return the people of a day, of whom states are asked for; None: it cannot be found out who came."""
        name = day.isoformat()
        if day in self.people.asked() and not self.people.is_down(name):
            return [row["id"] for row in self.api.people_of(day)]
        return self.people.found.get(name)

    def fails(self) -> bool:
        ids = [self.asked_for(day) for day in self.asked()]
        return None in ids or (self.is_down() and any(ids))

    def collected(self) -> None:
        days = self.asked()
        self.first = self.first or days[0]
        for day in days:
            ids = self.asked_for(day)
            if ids is None or (ids and self.is_down()):
                continue
            states = [{**state, "parent_id": person} for person in ids for state in states_of(person)]
            self.days.setdefault(day.isoformat(), {}).update({row["id"]: row for row in states})
            # As long as people may still come, states of theirs may.
            if day in self.people.final:
                self.note_final(day)


class Prices(Resource):
    """What is received as a whole each time."""

    name = "prices"
    chances = ((0.5, "change"), (0.2, "remove"), (0.05, "remove_all"), (0.1, "change_rules"))

    def __init__(self, clock: Clock, chance: Random, api: Club) -> None:
        super().__init__(clock, chance, api)
        self.all: list[Row] = []
        self.change()

    def settings(self) -> Row:
        return super().settings() | {"path": "/prices"}

    def change(self) -> None:
        for key in self.chance.sample(ITEMS, 2):
            self.api.prices[key] = {"id": key, "price": str(self.chance.randint(1, 99))}

    def remove(self) -> None:
        self.api.prices.pop(self.chance.choice(ITEMS), None)

    def remove_all(self) -> None:
        self.api.prices.clear()

    def collected(self) -> None:
        if not self.is_down():
            self.all = [dict(row) for row in self.api.prices.values()]

    def rows(self) -> Windows:
        return {"all": self.all}


class News(Resource):
    """What is asked for from a cursor on; numbers may come a little late."""

    name = "news"
    chances = ((0.8, "come"), (0.3, "come_late"), (0.3, "change"), (0.1, "change_rules"))
    late = 5

    def __init__(self, clock: Clock, chance: Random, api: Club) -> None:
        super().__init__(clock, chance, api)
        self.known: dict[str, Row] = {}
        self.collected_up_to = 0

    def settings(self) -> Row:
        columns = {"id": "text", "n": "integer", "title": "text"}
        given = {"cursor": "n", "start": "0", "look_back": self.late, "schema": {"columns": columns}}
        return super().settings() | {"path": "/news", "params": {"since": "{since}"}} | given

    def _come(self, n: int) -> None:
        self.api.news[f"n{n}"] = {"id": f"n{n}", "n": n, "title": self.chance.choice("xyz")}

    def come(self) -> None:
        for _ in range(self.chance.randint(1, 9)):
            self.api.highest += self.chance.randint(1, 3)
            self._come(self.api.highest)

    def come_late(self) -> None:
        self._come(max(1, self.collected_up_to - self.chance.randint(0, self.late)))

    def change(self) -> str | bool:
        if not self.api.news:
            return False
        key = self.chance.choice(sorted(self.api.news))
        self.api.highest += 1
        self.api.news[key].update(n=self.api.highest, title="changed")
        return key

    def collected(self) -> None:
        if not self.is_down():
            self.known.update({key: dict(row) for key, row in self.api.news.items()})
            self.collected_up_to = max((row["n"] for row in self.known.values()), default=0)

    def rows(self) -> Windows:
        return {"all": list(self.known.values())}


# --- a database ---


class Table(Twin):
    """A table of a database."""

    tool = "base"

    def __init__(self, clock: Clock, chance: Random, engine: sa.Engine) -> None:
        super().__init__(clock, chance)
        self.engine, self.is_down = engine, False
        self.all: dict[int, Row] = {}
        self.there: dict[int, Row] = {}

    def write(self) -> None:
        """Put what is there into the database."""
        with self.engine.begin() as connection:
            connection.execute(sa.text(f"DELETE FROM {self.name}"))
            if self.there:
                names = list(next(iter(self.there.values())))
                insert = f"INSERT INTO {self.name} VALUES ({', '.join(f':{name}' for name in names)})"
                connection.execute(sa.text(insert), list(self.there.values()))

    def happen(self) -> list[str]:
        done = super().happen()
        self.write()
        return done

    def fails(self) -> bool:
        return self.is_down

    def rows(self) -> Windows:
        return {"all": list(self.all.values())}


class Orders(Table):
    """A table that is asked for by the moment of the last change; what is deleted there stays in the lake."""

    name = "orders"
    chances = ((0.9, "come"), (0.5, "change"), (0.2, "delete"), (0.2, "come_undated"), (0.1, "change_rules"))

    def __init__(self, clock: Clock, chance: Random, engine: sa.Engine) -> None:
        super().__init__(clock, chance, engine)
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE orders (id INTEGER, changed DATETIME, price INTEGER)"))

    def settings(self) -> Row:
        columns = {"id": "integer", "changed": {"type": "timestamp", "zone": "UTC"}, "price": "integer"}
        given = {"cursor": "changed", "key": "id", "look_back": 7200, "schema": {"columns": columns}}
        return super().settings() | {"table": "orders"} | given

    def _row(self, key: int, late: float = 0.0) -> Row:
        at = self.clock.at.replace(tzinfo=None, microsecond=0) - timedelta(seconds=late)
        return {"id": key, "changed": at.isoformat(" ", "microseconds"), "price": self.chance.randint(1, 99)}

    def come(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            key = len(self.all | self.there) + 1
            self.there[key] = self._row(key, self.chance.choice((0, 0, 3600)))

    def come_undated(self) -> None:
        key = len(self.all | self.there) + 1
        self.there[key] = self._row(key) | {"changed": None}

    def change(self) -> str | bool:
        if not self.there:
            return False
        key = self.chance.choice(sorted(self.there))
        self.there[key] = self._row(key)
        return str(key)

    def delete(self) -> str | bool:
        if not self.there:
            return False
        key = self.chance.choice(sorted(self.there))
        # What was never collected is not known to have been there.
        return str(self.there.pop(key)["id"])

    def collected(self) -> None:
        if not self.is_down:
            self.all.update({key: dict(row) for key, row in self.there.items()})

    def rows(self) -> Windows:
        moment: Callable[[str], datetime] = lambda text: datetime.fromisoformat(text).replace(tzinfo=UTC)  # noqa: E731
        return {"all": [{**row, "changed": row["changed"] and moment(row["changed"])} for row in self.all.values()]}


class Stores(Table):
    """A table that is received as a whole; what becomes of the rows that it has no longer is one of three ways."""

    name = "stores"
    chances = ((0.5, "come"), (0.4, "change"), (0.4, "delete"), (0.05, "delete_all"), (0.3, "bring_back"))

    def __init__(self, clock: Clock, chance: Random, engine: sa.Engine) -> None:
        super().__init__(clock, chance, engine)
        self.policy = chance.choice((None, "keep", "mark", "delete"))
        self.gone: dict[int, Row] = {}
        self.landed: dict[int, Row] = {}
        with engine.begin() as connection:
            connection.execute(sa.text("CREATE TABLE stores (id INTEGER, town TEXT)"))

    def settings(self) -> Row:
        given: Row = {"table": "stores", "key": "id", "schema": {"columns": {"id": "integer", "town": "text"}}}
        return super().settings() | given | ({"vanished_rows": self.policy} if self.policy else {})

    def come(self) -> None:
        key = len(self.all | self.there | self.gone) + 1
        self.there[key] = {"id": key, "town": self.chance.choice("KLM")}

    def change(self) -> str | bool:
        if not self.there:
            return False
        key = self.chance.choice(sorted(self.there))
        self.there[key]["town"] += "x"
        return str(key)

    def delete(self) -> str | bool:
        if not self.there:
            return False
        key = self.chance.choice(sorted(self.there))
        self.gone[key] = self.there.pop(key)
        return str(key)

    def delete_all(self) -> None:
        self.gone.update(self.there)
        self.there.clear()

    def bring_back(self) -> str | bool:
        if not self.gone:
            return False
        key = self.chance.choice(sorted(self.gone))
        self.there[key] = self.gone.pop(key)
        return str(key)

    def collected(self) -> None:
        if self.is_down:
            return
        extra = {"vanished_at": None} if self.policy == "mark" else {}
        now = {key: {**row, **extra} for key, row in self.there.items()}
        self.landed = now
        gone = {key: row for key, row in self.all.items() if key not in now}
        if self.policy == "mark":
            gone = {
                key: {**row, "vanished_at": row["vanished_at"] or self.clock.at.date()} for key, row in gone.items()
            }
        self.all = now if self.policy in (None, "delete") else gone | now

    def rebuilt(self) -> None:
        """What is only in landings before the last one is gone."""
        self.all = dict(self.landed)


@dataclass
class World:
    """All sources together, with what is down today."""

    clock: Clock
    chance: Random
    folder: Path
    twins: list[Twin] = field(default_factory=list)

    def __post_init__(self) -> None:
        clock, chance, inbox = self.clock, self.chance, self.folder / "inbox"
        self.api = Club(clock, chance)
        self.base = self.folder / "base.db"
        engine = sa.create_engine(f"sqlite:///{self.base}", poolclass=sa.NullPool)
        people = People(clock, chance, self.api)
        self.tables: list[Table] = [Orders(clock, chance, engine), Stores(clock, chance, engine)]
        self.twins = [
            Stock(clock, chance, inbox),
            Sales(clock, chance, inbox),
            Visits(clock, chance, inbox),
            people,
            States(clock, chance, self.api, people),
            Prices(clock, chance, self.api),
            News(clock, chance, self.api),
            *self.tables,
        ]

    def tools(self, url: str) -> Row:
        """Return the section `tools` of the configuration as it is today."""
        of = {
            tool: {each.name: each.settings() for each in self.twins if each.tool == tool}
            for tool in ("shop", "club", "base")
        }
        return {
            "shop": {"source": "files", "directory": str(self.folder / "inbox"), "tables": of["shop"]},
            "club": {"source": "rest", "url": url, "days": 1, "page_size": 3, "resources": of["club"]}
            | {"paging": {"by": "offset"}},
            "base": {"source": "sql", "url": f"sqlite:///{self.base}", "tables": of["base"]},
        }

    def pass_a_day(self) -> list[str]:
        """Let things happen at all sources, and return them in words."""
        aside = self.base.with_suffix(".aside")
        if aside.exists():
            aside.rename(self.base)
        done = [said for twin in self.twins for said in twin.happen()]
        self.api.down.clear()
        places = ["/", "/people", "/states", "/prices", "/news", self.clock.at.date().isoformat()]
        if self.chance.random() < 0.2:
            self.api.down.add(self.chance.choice(places))
        is_down = self.chance.random() < 0.1
        if is_down:
            self.base.rename(aside)
        for table in self.tables:
            table.is_down = is_down
        return [*done, *(f"{place} is down" for place in self.api.down), *(["the database is down"] if is_down else [])]


def shown(row: Row) -> str:
    """Return a row as text, without its nulls: a column that is new is null in the rows before."""

    def text(value: Any) -> str:
        return f"{value:f}".rstrip("0") if isinstance(value, Decimal) else str(value)

    return json.dumps({name: value for name, value in row.items() if value is not None}, sort_keys=True, default=text)
