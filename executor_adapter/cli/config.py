"""`config check|show|schema`: whether the settings are valid, where each comes from, and what may be set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from executor_adapter.cli.config_checks import problems
from executor_adapter.cli.doctor import MARKS
from executor_adapter.cli.output import JsonOption, console, print_json, print_note, print_rows, without_secrets
from executor_adapter.cli.stores import ConfigOption
from executor_adapter.config import ConfigSources, Settings, hidden, holds, read_sources
from executor_adapter.job import size_text
from executor_adapter.monitoring import Level
from executor_adapter.terminal import SafeText

app = typer.Typer(help="Check, show and describe the configuration.", no_args_is_help=True)


@app.command()
def check(
    try_sources: Annotated[bool, typer.Option("--sources", help="Also read the first rows of each table.")] = False,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the configuration: its values, error codes, modules, steps and store. Exit code 2: it is wrong.

    Modules are found in the current directory and in that of FILE too, after all that is installed. No source is asked
    without --sources.
    """
    sources = read_sources(config_file)
    found = [without_secrets(each) for each in problems(sources.settings(), config_file, sources=try_sources)]
    is_valid = all(each.level is not Level.WRONG for each in found)
    if as_json:
        file = str(sources.file) if sources.file else None
        print_json({"file": file, "valid": is_valid, "problems": [dataclasses.asdict(each) for each in found]})
    else:
        for each in found:
            said = ": ".join(filter(None, (sources.description, each.check, each.found, each.way_out)))
            print_note(SafeText(said, style=MARKS[each.level][1]))
        if is_valid:
            console().print(f"{sources.description}: fine", soft_wrap=True)
    if not is_valid:
        raise typer.Exit(2)


@app.command()
def show(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also show default settings.")] = False,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the settings in force, and where each one comes from. Secrets are hidden."""
    sources = read_sources(config_file)
    rows = [(key, value, place) for key, value, place in described(sources) if everything or place != "default"]
    if as_json:
        print_json([{"key": key, "value": value, "from": place} for key, value, place in rows])
    elif not rows:
        console().print(SafeText("every setting has its default; --all shows them", style="dim"))
    else:
        print_rows(("KEY", "VALUE", "FROM"), [(key, _value_text(key, value), place) for key, value, place in rows])


def _value_text(key: str, value: Any) -> str:
    is_size = type(value) is int and key.rpartition(".")[2] in _SIZES
    return size_text(value) if is_size else json.dumps(value, default=str)


_SIZES = frozenset({"memory", "memory_limit", "max_rss_growth"})
"""Keys whose values are bytes."""


def described(sources: ConfigSources) -> Iterator[tuple[str, Any, str]]:
    """Yield each key, its value, and the source of it: `environment`, `.env`, the file, or `default`."""
    places = {**sources.given, str(sources.file): sources.written}
    for key, value in flat(sources.settings().model_dump(by_alias=True)):
        place = next((name for name, given in places.items() if holds(given, key.split("."))), "default")
        yield key, hidden(key, value), place


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of each setting."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value) if isinstance(value, Path) else value


@app.command()
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON schema of config.yaml, for editors. It is JSON without --json too.

    Write it beside the configuration, and begin config.yaml with: # yaml-language-server: $schema=./config.schema.json
    """
    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of config.yaml."""
    found = _with_standard_bounds(Settings.model_json_schema(mode="validation"))
    found["$schema"], found["title"] = "https://json-schema.org/draft/2020-12/schema", "executor adapter: config.yaml"
    return dict(sorted(found.items()))


_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def _with_standard_bounds(schema: Any) -> Any:
    """Rename bounds that pydantic leaves under names of its own, where a validator function comes first."""
    if isinstance(schema, list):
        return [_with_standard_bounds(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    bounds = {_BOUNDS[key]: value for key, value in schema.items() if key in _BOUNDS and isinstance(value, int | float)}
    return {
        key: _with_standard_bounds(part) for key, part in schema.items() if not (key in _BOUNDS and bounds)
    } | bounds
