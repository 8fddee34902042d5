"""`config check|show|schema`: what is set, where it was said, and what may be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from rich.text import Text

from executor_adapter.cli.output import JsonOption, console, print_json, print_rows
from executor_adapter.cli.stores import ConfigOption
from executor_adapter.config import ConfigSources, Settings, read_sources
from executor_adapter.exceptions import ConfigurationError

app = typer.Typer(help="Check, show and describe the configuration.", no_args_is_help=True)

_NAMED_SECRET = (
    r"(?:header|token|secret|passw|pwd|credential|auth(?!or(?!i))|cookie|signature|(?:api|access|private).?key)"
)
SECRET = re.compile(_NAMED_SECRET + r"|\b(?:params|body)\.key$", re.I)
"""Keys whose values are not shown. An author is none, an authorization is."""
_SECRET_IN_QUERY = re.compile(rf"([^=&?]*{_NAMED_SECRET}[^=&?]*|(?<=[?&])key)=[^&]*", re.I)
_PASSWORD = re.compile(r"^([^:]*://[^:]*|[^:]*(?!://)):.*@", re.S)
"""Up to the last @: who writes a password into a URL need not have escaped what is special there."""


@app.command()
def check(config_file: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say whether the configuration is right; else, in one line, what is wrong, with exit code 2."""
    sources = read_sources(config_file)
    sources.settings()
    if as_json:
        print_json({"file": str(sources.file) if sources.file else None, "valid": True})
    else:
        console().print(f"{sources.description}: fine", soft_wrap=True)


@app.command()
def show(
    everything: Annotated[bool, typer.Option("--all", "-a", help="Also what is as by default.")] = False,
    config_file: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the settings in force, and where each was said. Secrets are not shown."""
    sources = read_sources(config_file)
    rows = [(key, value, place) for key, value, place in described(sources) if everything or place != "default"]
    if as_json:
        print_json([{"key": key, "value": value, "from": place} for key, value, place in rows])
    elif not rows:
        console().print(Text("all is as by default; --all shows it", style="dim"))
    else:
        print_rows(
            ("KEY", "VALUE", "FROM"), [(key, json.dumps(value, default=str), place) for key, value, place in rows]
        )


def described(sources: ConfigSources) -> Iterator[tuple[str, Any, str]]:
    """Each key with its value and the place that said it: `environment`, `.env`, the file, or `default`."""
    places = {**sources.given, str(sources.file): sources.written}
    for key, value in flat(sources.settings()):
        place = next((name for name, said in places.items() if says(said, key.split("."))), "default")
        yield key, hidden(key, value), place


def flat(settings: BaseModel | Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of the settings, by their dotted keys."""
    if isinstance(settings, BaseModel):
        fields = type(settings).model_fields
        items = {field.alias or name: getattr(settings, name) for name, field in fields.items()}
    else:
        items = dict(settings)
    for name, value in items.items():
        if isinstance(value, BaseModel) or (isinstance(value, Mapping) and value):
            yield from flat(value, f"{prefix}{name}.")
        else:
            plain = (
                [v.model_dump(mode="json") if isinstance(v, BaseModel) else v for v in value]
                if isinstance(value, tuple)
                else value
            )
            yield prefix + name, str(plain) if isinstance(plain, Path) else plain


def says(said: Any, path: list[str]) -> bool:
    """Whether the place that `said` this says anything of the key."""
    for part in path:
        if not isinstance(said, Mapping):
            return False
        found = [value for key, value in said.items() if str(key) == part]
        if not found:
            return False
        said = found[0]
    return True


def hidden(key: str, value: Any) -> Any:
    """The value, without what is secret in it."""
    if value is None:
        return None
    if SECRET.search(key):
        return "(hidden)"
    if isinstance(value, Mapping):
        return {name: hidden(f"{key}.{name}", part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(key, part) for part in value]
    return without_secrets(value) if isinstance(value, str) else value


def without_secrets(text: str) -> str:
    """A URL without its password and without what its query calls by a secret's name; rather too little than too much
    of one that is not written as it should be."""
    place, _, query = text.partition("?")
    if "@" in query:  # which may end a password with a ? in it, or belong to the query
        return f"{place.partition('://')[0]}://(hidden)" if "://" in place else "(hidden)"
    return _SECRET_IN_QUERY.sub(r"\1=(hidden)", _PASSWORD.sub(r"\1:(hidden)@", text))


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the JSON schema of config.yaml, for editors; it is JSON without --json too.

    Write it beside the configuration, and begin that with: # yaml-language-server: $schema=./config.schema.json
    """
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if output is None:
        typer.echo(text)
        return
    try:
        output.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--output {output} cannot be written: {error.strerror}: give another") from None
    if as_json:
        print_json({"file": str(output)})
    else:
        console().print(f"begin config.yaml with: # yaml-language-server: $schema=./{output.name}", soft_wrap=True)


def json_schema() -> dict[str, Any]:
    """Of what may stand in config.yaml."""
    found = _in_its_words(Settings.model_json_schema(mode="validation"))
    found["$schema"], found["title"] = "https://json-schema.org/draft/2020-12/schema", "executor adapter: config.yaml"
    return dict(sorted(found.items()))


_WORDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


def _in_its_words(schema: Any) -> Any:
    """Pydantic leaves its own names for the bounds of a number that a function looks at first."""
    if isinstance(schema, list):
        return [_in_its_words(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    bounds = {_WORDS[key]: value for key, value in schema.items() if key in _WORDS and isinstance(value, int | float)}
    return {key: _in_its_words(part) for key, part in schema.items() if not (key in _WORDS and bounds)} | bounds
