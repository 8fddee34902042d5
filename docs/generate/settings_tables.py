"""The reference of the settings, from the schema of the configuration file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from markdown_text import code, table

from executor_adapter.config import Settings

PREFIX = "EXECUTOR_ADAPTER_"
_ITEMS = {"job": ("job.retry.rules", "RuleSettings"), "cluster": ("cluster.ssh.hosts", "SshHostSettings")}
"""The section of the items of a list that is in a section."""


def reference() -> str:
    """Every setting, by section."""
    schema = Settings.model_json_schema()
    top = [
        (key, part) for key, part in schema["properties"].items() if _section(part, schema) is None and key != "tools"
    ]
    parts = ["## Top level", "", _table((("", top),), schema)]
    for key, part in schema["properties"].items():
        section = _section(part, schema)
        if section is not None:
            parts += _described(key, section, schema)
        if key in _ITEMS:
            title, kind = _ITEMS[key]
            item = schema["$defs"][kind]
            rows = list(item["properties"].items())
            parts += [f"### {title}", "", item["description"], "", _table((("", rows),), schema)]
    parts += _tools(schema)
    return "\n".join(parts)


def _described(key: str, section: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    rows = list(_leaves("", section, schema))
    return [f"## {key}", "", section.get("description", ""), "", _table(((key, rows),), schema)]


def _tools(schema: dict[str, Any]) -> list[str]:
    """The kinds of tools, and what is inside them."""
    kinds = {
        "Tool": ("tools.NAME", "with functions of your own"),
        "FilesTool": ("tools.NAME", "with `source: files`"),
        "FileTable": ("tools.NAME.tables.TABLE", "a table of it"),
        "RestTool": ("tools.NAME", "with `source: rest`"),
        "Credential": ("tools.NAME.credential", "where its secret is"),
        "Paging": ("tools.NAME.paging", "how its pages are asked for"),
        "RestResource": ("tools.NAME.resources.TABLE", "a resource of it"),
        "SqlTool": ("tools.NAME", "with `source: sql`"),
        "SqlTable": ("tools.NAME.tables.TABLE", "a table of a database"),
        "FunctionTool": ("tools.NAME", "with `source: function`"),
        "FunctionTable": ("tools.NAME.tables.TABLE", "what a function gives"),
        "TableSchema": ("schema", "of any of these tables"),
        "Column": ("schema.columns.COLUMN", "its type, or these keys"),
    }
    parts = ["## tools", "", "One section for each tool, by its name.", ""]
    for kind, (key, said) in kinds.items():
        section = schema["$defs"][kind]
        rows = [(name, part) for name, part in section["properties"].items() if name != "job"]
        jobs = "`tools.NAME.job` takes the keys of [`job`](#job).\n" if "job" in section["properties"] else ""
        parts += [f"### {key}, {said}", "", section.get("description", ""), "", jobs, _table((("", rows),), schema)]
    return parts


def _leaves(prefix: str, section: dict[str, Any], schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, part in section["properties"].items():
        inner = _section(part, schema)
        if inner is None:
            yield prefix + name, part
        else:
            yield from _leaves(f"{prefix}{name}.", inner, schema)


def _section(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a part refers to, or nothing where it is a single value."""
    reference = part.get("$ref") or (part.get("allOf") or [{}])[0].get("$ref")
    found = schema["$defs"][reference.rsplit("/", 1)[1]] if reference else {}
    return found if "properties" in found else None


def _table(groups: tuple[tuple[str, list[tuple[str, dict[str, Any]]]], ...], schema: dict[str, Any]) -> str:
    rows = []
    for section, parts in groups:
        for name, part in parts:
            said = part.get("description", "")
            variable = f"<br>{code(_variable(section, name))}" if section else ""
            rows.append((code(name), _allowed(part, schema), code(_default(part)), said + variable))
    return table(("key", "value", "default", "meaning"), rows)


def _variable(section: str, name: str) -> str:
    return PREFIX + "__".join(filter(None, (section, *name.split(".")))).upper()


def _default(part: dict[str, Any]) -> str:
    return json.dumps(part["default"]) if "default" in part else ""


def _allowed(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "enum" in part:
        return ", ".join(code(str(value)) for value in part["enum"])
    if "const" in part:
        return code(str(part["const"]))
    if "$ref" in part:
        return _allowed(schema["$defs"][part["$ref"].rsplit("/", 1)[1]], schema)
    if "anyOf" in part:
        return " or ".join(dict.fromkeys(_allowed(each, schema) for each in part["anyOf"]))
    kinds = part.get("type", "anything")
    names = [_KINDS.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    if kinds == "array":
        names = [f"list of {_plural(_allowed(part.get('items', {}), schema))}"]
    bounds = [f"{sign} {part[key]:g}" for key, sign in _BOUNDS.items() if isinstance(part.get(key), int | float)]
    return " or ".join(names) + (f" {', '.join(bounds)}" if bounds else "")


def _plural(kind: str) -> str:
    return {"text": "texts", "whole number": "whole numbers", "number": "numbers"}.get(kind, kind)


_KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
    "anything": "anything",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
