"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import enum
import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from markdown_text import code, table

from executor_adapter.cli.app import app
from executor_adapter.cli.run import EXIT_CODES

NAME = "executor-adapter"


def reference() -> str:
    """Every command with its arguments and options."""
    return "\n".join(_described(path, command) for path, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Each command that does something, by the words that call it, in alphabetical order."""
    yield from sorted(_below(NAME, typer.main.get_command(app)), key=lambda found: found[0])


def exit_codes() -> str:
    """What the exit codes of `run` stand for, by the error codes that lead to them."""
    by_exit: dict[int, list[str]] = {}
    for error_code, exit_code in EXIT_CODES.items():
        by_exit.setdefault(exit_code, []).append(code(error_code))
    rows = [
        ("0", "completed"),
        ("1", "failed, with any other error code"),
        ("2", "rejected: the command line, the configuration, or a job that can never run"),
        *((str(exit_code), ", ".join(codes)) for exit_code, codes in by_exit.items()),
    ]
    return table(("exit code", "when"), rows)


def _below(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, below in command.commands.items():
        yield from _below(f"{path} {name}", below)


def _described(path: str, command: Any) -> str:
    types_of = typing.get_type_hints(inspect.unwrap(command.callback))
    options = [each for each in command.params if each.param_type_name == "option"]
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join((path, *map(_name, arguments), "[OPTIONS]"))
    parts = [f"## {path.removeprefix(NAME).strip()}", "", f"```text\n{usage}\n```", "", _help(command), ""]
    if arguments:
        parts += [table(("argument", "meaning"), ((code(_name(each)), each.help or "") for each in arguments))]
    if options:
        rows = [
            (code(", ".join(each.opts)), code(_value(each, types_of[each.name])), _default(each), each.help or "")
            for each in options
        ]
        parts += [table(("option", "value", "default", "meaning"), rows)]
    return "\n".join(parts)


def _help(command: Any) -> str:
    return (command.help or "").replace("\b\n", "").strip()


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _value(option: Any, annotation: Any) -> str:
    """What an option takes; nothing for a switch."""
    return str(option.metavar or _type(annotation))


def _type(annotation: Any) -> str:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _type(next(each for each in inside if each is not types.NoneType))
    if origin is list:
        return _type(inside[0])
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "|".join(str(each.value) for each in annotation)
    return {str: "TEXT", int: "NUMBER", float: "NUMBER", Path: "FILE"}.get(annotation, "")


def _default(option: Any) -> str:
    value = option.default
    return "" if value is None or value is False or callable(value) else code(str(value))
