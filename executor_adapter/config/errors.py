"""Errors of a configuration in one line: the place, the key, its value, and what is allowed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from executor_adapter.config.secrets import hidden
from executor_adapter.exceptions import ConfigurationError
from executor_adapter.job import nearest, rule_text, shown

MAX_NODES = 100_000
"""Values that a file may hold, each alias counted as what it stands for."""
MERGE, BOOL, TEXT = (f"tag:yaml.org,2002:{kind}" for kind in ("merge", "bool", "str"))
"""Tags: of the key `<<`, which brings the keys of an anchored mapping, of what is taken for a bool, and of a text."""

REPLACED = dict.fromkeys(("measures", "group_by"), "steps, with `sql: SELECT ... FROM {rows} GROUP BY ...`")
REPLACED |= {"version": "the command `executor-adapter pipeline reprocess`", "compact": "to leave it out"}
"""What keys that a table had have become, where that is not a key that is spelt alike."""


class _Loader(yaml.SafeLoader):
    """Loads YAML, and refuses what it would silently take.

    That is a key that is twice in one mapping, of which the last would win, and aliases that stand for themselves or
    for very much: a few lines can stand for more than memory holds. A key is the text that is written: YAML 1.1 takes
    `on` and `no` for booleans.
    """

    def get_single_node(self) -> yaml.Node | None:
        """Return the node of the document, after counting what it stands for."""
        node = super().get_single_node()
        if node is not None:
            _count_nodes(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Make the value of a node, refusing a date or number that there is not."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # What PyYAML raises for a month 13, a bool "x" and a date "x".
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"this is not a right {kind}: correct it, or put it in quotes", problem_mark=node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Make the dict of a mapping, refusing duplicate keys."""
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if key_node.tag == MERGE:
                continue  # Keys of what is merged may be there too: those of the mapping itself win.
            if key_node.tag == BOOL:
                key_node.tag = TEXT
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # The class above refuses it.
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key!r} is a duplicate key: remove one", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> dict[str, Any]:
    """Return the mapping in `file`; an empty file is an empty mapping.

    Raises:
        ConfigurationError: the file cannot be read, or is not YAML; the message names line and column.
    """
    try:
        content = yaml.load(file.read_bytes(), Loader=_Loader)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ConfigurationError(f"{file}: {where}{one_line(error.problem)}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{file}: {one_line(error)}") from None
    except RecursionError:
        raise ConfigurationError(f"{file}: its values are nested too deeply: flatten them") from None
    if content is not None and not isinstance(content, dict):
        # Its content is not shown: whoever starts a flow names the file, and it could be one that holds a secret.
        kind = "a list" if isinstance(content, list) else "a text" if isinstance(content, str) else "one value"
        raise ConfigurationError(f"{file}: holds {kind}: must be a mapping of keys to values")
    return {str(key): value for key, value in (content or {}).items()}


def _count_nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node stands for; `known` holds those of other nodes."""
    count = known.get(id(node))
    if count is None:
        known[id(node)] = float("inf")  # An alias for what holds it stands for values without end.
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = (part for item in inside for part in (item if isinstance(item, tuple) else (item,)))
        count = known[id(node)] = 1 + sum(_count_nodes(part, known) for part in parts)
    if count > MAX_NODES:
        problem = f"its aliases stand for more than {MAX_NODES:,} values: write them out"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return count


def top_level_keys(file: Path) -> list[str] | None:
    """Return the keys of the mapping in `file`, whatever their values.

    Empty where the file holds something other than a mapping; None where it is empty or not YAML.
    """
    try:
        node = yaml.compose(file.read_bytes(), Loader=yaml.SafeLoader)
    except (OSError, yaml.YAMLError, RecursionError):
        return None
    keys = [str(key.value) for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    return None if node is None else keys


def describe(
    error: ValidationError, file: str, written: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]]
) -> str:
    """Describe the first error of `error` in one line, and count the others.

    Args:
        error: the error.
        file: the name of the file.
        written: what the file holds.
        given: what each place holds that wins over the file, the strongest first.
    """
    details = error.errors(include_url=False)
    first = details[0]
    path = _path(first["loc"], [written, *given.values()])
    key, message = _key_and_message(first, ".".join(path))
    path += key
    place = next((name for name, values in given.items() if holds(values, path)), file)
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return one_line(f"{place}: {'.'.join(path)}{message}{more}")


def _key_and_message(error: ErrorDetails, path: str) -> tuple[list[str], str]:
    """Return the keys to be added to the error's path, and the message for the key there. It quotes no secret."""
    context = error.get("ctx", {})
    match error["type"]:
        case "unknown_key":
            return [context["key"]], f" is not a key: {nearest_of(context['key'], context['allowed'])}"
        case "missing_key":
            return [context["key"]], f" is missing: must be {context['wanted']}"
        case "union_tag_not_found":
            return ["source"], " is missing: must be 'files', 'rest', 'sql' or 'function'"
        case "union_tag_invalid":
            return ["source"], f": {shown(context['tag'])} is not allowed: must be {context['expected_tags']}"
        case "together":
            return context["path"], f": {context['value']} is not allowed: {context['why']}"
        case "place" | "parent":
            return [], f": {error['msg']}"
    return [], f": {shown(hidden(path, error['input']))} is not allowed: {_rule(error)}"


def _rule(error: ErrorDetails) -> str:
    match error["type"]:
        case "model_type" | "model_attributes_type" | "dict_type":
            return "must be a mapping of keys to values"
        case "too_short":
            return "must have at least one entry"
        case "string_pattern_mismatch":
            return f"must match {error['ctx']['pattern']}"
    return rule_text(error)


def nearest_of(key: str, allowed: list[str]) -> str:
    """Return what is allowed, and the nearest of it first."""
    near = (REPLACED.get(key) if "steps" in allowed else None) or nearest(key, allowed)
    hint = f"did you mean {near}? " if near else ""
    return f"{hint}allowed are {', '.join(allowed)}"


def _path(location: tuple[int | str, ...], places: list[Mapping[str, Any]]) -> list[str]:
    """Return the location without the parts that pydantic adds to it, such as a union's tag: no place holds those."""
    path: list[str] = []
    for part in location:
        if any(holds(values, [*path, str(part)]) for values in places):
            path.append(str(part))
    return path


def holds(values: Any, path: list[str]) -> bool:
    """Return whether the values that one source has given include the key at this path."""
    for part in path:
        inside = dict(enumerate(values)) if isinstance(values, list | tuple) else values
        found = {str(key): value for key, value in inside.items()} if isinstance(inside, Mapping) else {}
        if part not in found:
            return False
        values = found[part]
    return bool(path)


def one_line(text: object) -> str:
    """Return `text` without line breaks."""
    return " ".join(str(text).split())
