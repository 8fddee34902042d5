"""What an operator asks of the tables of a configuration, and does to them, on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from executor_adapter.exceptions import ConfigurationError

MAX_REJECTS = 100
"""Rejects that `rejects` shows."""
PERIODS = {"hourly": 3_600.0, "daily": 86_400.0, "weekly": 604_800.0, "monthly": 2_678_400.0}
"""Seconds within which a new delivery is expected, by what `expect` of a table says."""


class Answer(NamedTuple):
    """A table for the terminal."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file.")]
TableArgument = Annotated[str, typer.Argument(help="The table, as tool.table.")]
WindowOption = Annotated[str | None, typer.Option(help="One window; all of them where it is left out.")]
DayOption = Annotated[datetime, typer.Option(formats=["%Y-%m-%d"])]


def add_commands(
    app: typer.Typer,
    show: Callable[[Sequence[str], Sequence[Sequence[Any]]], None],
    surrounding: Callable[[], AbstractContextManager[None]],
) -> None:
    """Add the commands to an app.

    Args:
        app: the app.
        show: prints a table, of which it is given the columns and the rows.
        surrounding: what each command runs in.
    """

    def run(action: Callable[..., Answer], *arguments: Any) -> None:
        with surrounding():
            show(*action(*arguments))

    @app.command("status")
    def status_command(config_file: ConfigOption = None) -> None:
        """Show each table: its last delivery, how late it is, windows, rows and rejects."""
        run(status, config_file)

    @app.command("windows")
    def windows_command(table: TableArgument, config_file: ConfigOption = None) -> None:
        """Show the windows of a table: rows, when they were collected, and what became of them."""
        run(windows, table, config_file)

    @app.command("rejects")
    def rejects_command(table: TableArgument, window: WindowOption = None, config_file: ConfigOption = None) -> None:
        """Show the rejects of a table, with their step, place and reason."""
        run(rejects, table, window, config_file)

    @app.command("reprocess")
    def reprocess_command(table: TableArgument, window: WindowOption = None, config_file: ConfigOption = None) -> None:
        """Process windows of a table again, whether or not something has changed."""
        run(reprocess, table, window, config_file)

    @app.command("backfill")
    def backfill_command(
        table: TableArgument, since: DayOption, until: DayOption, config_file: ConfigOption = None
    ) -> None:
        """Collect the days from `since` on and before `until` again; of files all, where something has changed."""
        run(backfill, table, since.date(), until.date(), config_file)

    @app.command("rebuild")
    def rebuild_command(table: TableArgument, config_file: ConfigOption = None) -> None:
        """Make a table anew from what was landed, and process it."""
        run(rebuild, table, config_file)


def status(config_file: Path | None = None) -> Answer:
    """Return a row for each table of the configuration."""
    rows = []
    for table in _tables(config_file):
        found = table.raw.windows()
        rejected = sum(entry.rows for layer in (table.unfit, table.rejects) for entry in layer.windows().values())
        last = last_delivery(table)
        late = lateness(table)
        rows.append(
            (
                f"{table.tool_name}.{table.name}",
                "never" if last is None else f"{last:%Y-%m-%d %H:%M}",
                "" if late is None else str(timedelta(seconds=round(late))),
                len(found),
                sum(entry.rows for entry in found.values()),
                rejected,
            )
        )
    return Answer(("table", "last delivery", "late by", "windows", "rows", "rejected"), rows)


def last_delivery(table: Any) -> datetime | None:
    """Return when the table was given rows, in UTC; None: never."""
    given = [entry.collected_at for entry in table.raw.windows().values() if entry.rows]
    return datetime.fromisoformat(max(given)) if given else None


def lateness(table: Any, now: datetime | None = None) -> float | None:
    """Return for how many seconds a delivery has been expected; None: it is not late, or none is expected."""
    last, period = last_delivery(table), PERIODS.get(table.settings.expect or "")
    if period is None or last is None:
        return None
    late = ((now or datetime.now(UTC)) - last).total_seconds() - period
    return late if late > 0 else None


def windows(name: str, config_file: Path | None = None) -> Answer:
    """Return a row for each window of a table."""
    table = _table(name, config_file)
    processed, rejected = table.processed.windows(), table.rejects.windows()
    rows = [
        (
            window,
            entry.rows,
            f"{datetime.fromisoformat(entry.collected_at):%Y-%m-%d %H:%M}",
            processed[window].rows if window in processed else None,
            rejected[window].rows if window in rejected else None,
            processed[window].dropped if window in processed else None,
        )
        for window, entry in table.raw.windows().items()
    ]
    return Answer(("window", "rows", "collected", "processed", "rejected", "dropped"), rows)


def rejects(name: str, window: str | None = None, config_file: Path | None = None) -> Answer:
    """Return a row for each of the first rejects of a table."""
    table = _table(name, config_file)
    rows: list[tuple[Any, ...]] = []
    for layer in (table.unfit, table.rejects):
        for found in _wanted(layer.windows(), window):
            for each in layer.read(found).to_pylist()[: MAX_REJECTS - len(rows)]:
                step = each.get("step") or ("type" if each.get("row") else "read")
                rows.append((found, step, each.get("line") or each.get("row"), each["reason"], each["text"]))
    return Answer(("window", "step", "line", "reason", "text"), rows)


def reprocess(name: str, window: str | None = None, config_file: Path | None = None) -> Answer:
    """Process windows of a table, of which what was made before is removed."""
    from executor_adapter.pipeline.lake.upkeep import remove_windows

    table = _table(name, config_file)
    wanted = _wanted(table.raw.windows(), window)
    remove_windows(table.processed, wanted)
    return _processed(table, wanted)


def backfill(name: str, since: date, until: date, config_file: Path | None = None) -> Answer:
    """Collect days of a table again, and process what has changed."""
    from executor_adapter.pipeline.collecting import collect_window, find_windows

    table = _table(name, config_file)
    found = [collect_window(table, each, again=True) for each in find_windows(table, since, until)]
    return _processed(table, sorted({window for each in found for window in each["windows"]}))


def rebuild(name: str, config_file: Path | None = None) -> Answer:
    """Make a table anew from its landings, and process it."""
    from executor_adapter.pipeline.collecting import rebuild_table

    table = _table(name, config_file)
    rebuild_table(table)
    return _processed(table, list(table.raw.windows()))


def _processed(table: Any, wanted: Iterable[str]) -> Answer:
    from executor_adapter.pipeline.processing import process_table

    rows = []
    for window in wanted:
        if table.raw.windows()[window].rows:
            done = process_table(table, window)
            rows.append((window, done["status"], done["records_processed"], done["rejected"]))
    return Answer(("window", "status", "processed", "rejected"), rows)


def _tables(config_file: Path | None) -> list[Any]:
    from executor_adapter.config import load_config
    from executor_adapter.pipeline.tables import configured_tables, select_tools

    settings = load_config(config_file)
    return [table for tool in select_tools(settings) for table in configured_tables(settings, tool)]


def _table(name: str, config_file: Path | None) -> Any:
    tables = {f"{table.tool_name}.{table.name}": table for table in _tables(config_file)}
    if name not in tables:
        raise ConfigurationError(f"{name!r} is not a table: must be one of {', '.join(tables)}")
    return tables[name]


def _wanted(found: Iterable[str], window: str | None) -> list[str]:
    return [each for each in found if window in (None, each)]
