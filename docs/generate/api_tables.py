"""Tables of the Python API that docstrings alone cannot give: fields with their defaults, options, error codes."""

from __future__ import annotations

import email.message
import functools
import importlib
import inspect
import re
import typing
import urllib.error
from typing import Any

import griffe
from markdown_text import code, table
from prefect import Task
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from executor_adapter import ErrorCode, Job, RetryPolicy, RetryRule
from executor_adapter.config import JobSettings
from executor_adapter.error_codes import error_code_of
from executor_adapter.error_facts import ErrorFacts
from executor_adapter.prefect import JobExecutorBlock

OF_ONE_CALL = ("function", "args", "kwargs", "job_id")
"""Fields of a Job that a job task does not take as options: they belong to one call."""

SAME_AS = {
    "retries": "`retry_attempts`",
    "retry_delay_seconds": "`retry`, with a constant delay, a list of delays, or what a callable gives",
    "retry_jitter_factor": "`retry`: the jitter of those delays",
    "timeout_seconds": "`max_runtime`",
}
"""Options of a Prefect task that a job task translates into fields of the Job."""


def job_fields() -> str:
    """Every field of a Job, with its type, default and meaning."""
    return _fields(Job)


def retry_policy_fields() -> str:
    """Every field of a RetryPolicy."""
    return _fields(RetryPolicy)


def retry_rule_fields() -> str:
    """Every field of a RetryRule."""
    return _fields(RetryRule)


def block_fields() -> str:
    """Every field of a JobExecutorBlock."""
    return _fields(JobExecutorBlock)


def job_task_options() -> str:
    """Every option of `job_task`: the fields of a Job first, then those of a Prefect task."""
    ours = [
        (code(name), _default(Job, name), _meaning(Job, name)) for name in Job.model_fields if name not in OF_ONE_CALL
    ]
    theirs = sorted((set(inspect.signature(Task.__init__).parameters) | {"assets"}) - {"self", "fn"})
    meanings = _arguments_of(Task) | {"assets": "The assets that the task materializes, by their keys."}
    meanings |= {name: f"Same as {ours}." for name, ours in SAME_AS.items()}
    prefects = [(code(name), meanings.get(name, "See Prefect's documentation.")) for name in theirs]
    return "\n".join(
        (
            "### Fields of a Job",
            "",
            table(("option", "default", "meaning"), ours),
            "### Options of a Prefect task",
            "",
            table(("option", "meaning"), prefects),
        )
    )


def error_codes() -> str:
    """Every ErrorCode: when it is given, and whether a failed attempt with it is followed by another."""
    members = _package()["ErrorCode"].members
    rows = [(code(str(each)), _text(members[each.name].docstring), _retried(each)) for each in ErrorCode]
    return table(("code", "meaning", "retried"), rows)


def http_statuses() -> str:
    """Which code an HTTP status stands for, as the package decides it for an error of urllib's."""
    of_status = {
        status: error_code_of(urllib.error.HTTPError("", status, "", email.message.Message(), None))
        for status in range(400, 600)
    }
    most = {hundred: of_status[hundred + 50] for hundred in (400, 500)}  # a status that nothing is said of
    special: dict[str, list[str]] = {}
    for status, error_code in of_status.items():
        if error_code != most[status // 100 * 100]:
            special.setdefault(error_code, []).append(str(status))
    rows = [(", ".join(statuses), code(error_code)) for error_code, statuses in special.items()]
    rows += [(f"any other from {hundred} to {hundred + 99}", code(error_code)) for hundred, error_code in most.items()]
    return table(("HTTP status", "code"), rows)


def _retried(error_code: ErrorCode) -> str:
    if error_code is ErrorCode.QUEUE_TIMEOUT:
        return "no"  # the job ends before any attempt, so there is nothing to follow
    decide = importlib.import_module(RetryPolicy.__module__).decide
    policy = RetryPolicy()
    error = ErrorFacts(error_code, (), "")
    if not decide(policy, error=error, attempt=1, crashes=0).retry:
        return "no"
    if decide(policy, error=error, attempt=1, crashes=policy.crash_attempts + 1).retry:
        return "yes"
    return "yes, at most `crash_attempts` times"


# --- what is known of a field ---


def _fields(model: type[BaseModel]) -> str:
    rows = [
        (code(name), _type(model, name), _default(model, name), _meaning(model, name)) for name in model.model_fields
    ]
    return table(("field", "type", "default", "meaning"), rows)


def _type(model: type[BaseModel], name: str) -> str:
    if model is Job and name == "function":
        return "`Callable | str`"
    schema = model.model_json_schema(mode="serialization" if name == "function" else "validation")
    return code(_json_type(schema["properties"].get(name, {}), schema))


def _json_type(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """What a JSON schema allows, in the words of Python."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if "enum" in schema:
        return " | ".join(repr(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_json_type(each, root) for each in schema["anyOf"]))
    items = schema.get("items") or {}
    match schema.get("type"):
        case "array":
            return f"tuple[{_json_type(items, root)}, ...]" if items else "tuple"
        case "object":
            return "dict"
        case list(types):
            return " | ".join(_NAMES[each] for each in types)
        case str(one):
            return _NAMES[one]
        case _:
            return "Any"


_NAMES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def _default(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return "required"
    if name == "job_id":
        return "a new UUID"
    value = field.get_default(call_default_factory=True)
    return "" if value is PydanticUndefined else code(repr(value))


def _meaning(model: type[BaseModel], name: str) -> str:
    """A field's docstring; else what the class's docstring says of it; else what the settings say of the same field."""
    home = _package().members.get(model.__name__)
    member = home.members.get(name) if home is not None else None
    own = _text(member.docstring) if member is not None else ""
    said = own or model.model_fields[name].description or _said_by_class(model, name)
    return said or _said_by_settings(model, name)


def _said_by_settings(model: type[BaseModel], name: str) -> str:
    """What the configuration says of a key of the same name and meaning."""
    retry = JobSettings().retry
    rules = typing.get_args(type(retry).model_fields["rules"].annotation)[0]
    sections: dict[type, tuple[type[BaseModel], ...]] = {
        Job: (JobSettings,),
        RetryPolicy: (type(retry), JobSettings),
        RetryRule: (rules,),
    }
    found = (section.model_fields.get(name) for section in sections.get(model, ()))
    return next((field.description for field in found if field is not None and field.description), "")


def _said_by_class(model: type[BaseModel], name: str) -> str:
    match = re.search(rf"`{name}`: (.+?)(?=\s`\w+`: |\n\n|\Z)", inspect.getdoc(model) or "", re.DOTALL)
    return "" if match is None else match[1][:1].upper() + match[1][1:]


def _text(docstring: griffe.Docstring | None) -> str:
    return "" if docstring is None else docstring.value


def _arguments_of(kind: type) -> dict[str, str]:
    """What the docstring of a class of Prefect's says of its arguments: the first sentence of each."""
    text = inspect.getdoc(kind) or ""
    listed = text.partition("Args:\n")[2]
    found = re.findall(r"^    (\w+): (.+?)(?=^    \w+: |\Z)", listed, re.DOTALL | re.MULTILINE)
    return {name: re.split(r"(?<=\.)\s", " ".join(said.split()), maxsplit=1)[0] for name, said in found}


@functools.cache
def _package() -> Any:
    """The package as griffe reads it, with its docstrings of attributes, which are not there at run time."""
    return griffe.load("executor_adapter", resolve_aliases=True)
