"""Mistakes in what users give: one line that names the mistake, the nearest right thing and the way out.

`Model` is the base of the models that users make: a wrong field raises InvalidJobError in one line.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from executor_adapter.exceptions import InvalidJobError

MAX_SHOWN = 80
"""Characters of a value that a message quotes."""

ELSEWHERE = {
    "backoff": ("backoff_coefficient",),
    "concurrency": ("max_workers", "max_concurrent_jobs", "max_concurrent"),
    "delay": ("retry_delay",),
    "fn": ("function",),
    "max_retries": ("retry_attempts",),
    "n_workers": ("max_workers", "max_concurrent_jobs"),
    "processes": ("max_workers", "max_concurrent_jobs"),
    "retries": ("retry_attempts",),
    "retry_backoff": ("backoff_coefficient",),
    "target": ("function",),
    "time_limit": ("max_runtime",),
    "timeout": ("max_runtime",),
    "timeout_seconds": ("max_runtime",),
    "tool": ("tool_name",),
    "workers": ("max_workers", "max_concurrent_jobs"),
}
"""Names that other libraries have for our options. They win over names that are merely spelt alike; one that leads to
ours by its spelling is not here."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` probably means: the one of the same meaning, or else one spelt alike."""
    names = list(known)
    same = [ours for ours in ELSEWHERE.get(name, ()) if ours in names]
    near = same or difflib.get_close_matches(name, names, n=1)
    return near[0] if near else None


def did_you_mean(name: str, known: Collection[str], *, otherwise: str = "use one of ") -> str:
    """Return "did you mean ...?" for a name that is not known, or the known names after `otherwise`."""
    near = nearest(name, known)
    return f"did you mean {near}?" if near else otherwise + ", ".join(known)


def shown(value: object) -> str:
    """Return the value as code for a message, cut where it is long; a function or class by its name."""
    if inspect.isroutine(value) or isinstance(value, type):
        return str(getattr(value, "__name__", value))
    try:
        text = " ".join(repr(value).split())
    except Exception:  # The value's own code may raise anything.
        text = f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


class _NamingMistakes(type(BaseModel)):  # type: ignore[misc]  # pydantic does not export its metaclass.
    """Turns pydantic's error about what a model is called with into one line.

    A call of the class passes here, and a model that is read from a dict inside another one does not: that error stays
    pydantic's, which knows the whole path.
    """

    no_fields: ClassVar[dict[str, Any]] = {}
    """The dict of an object of Python's own that has the fields as attributes. Copies of it share its keys, and take a
    third of the memory of a dict that pydantic makes. Empty where there are never many objects of the class."""

    def __call__(cls, *positional: Any, **fields: Any) -> Any:
        if positional:
            raise TypeError(f"{cls.__name__} takes its fields by name: write {cls.by_name(positional, fields)}")
        try:
            if cls.__pydantic_custom_init__:  # A subclass of the user's may have one.
                return type.__call__(cls, **fields)
            made = cls.__pydantic_validator__.validate_python(fields)  # As `BaseModel.__init__`, with two calls less.
        except ValidationError as error:
            raise cls.refusal(error, fields) from None
        object.__setattr__(made, "__dict__", cls.no_fields | vars(made))
        return made


if TYPE_CHECKING:
    Model = BaseModel
else:

    class Model(BaseModel, metaclass=_NamingMistakes):
        """The base of models that refuse a wrong field with one line; `refusal` returns the error."""

        @classmethod
        def refusal(cls, error: ValidationError, fields: Mapping[str, Any]) -> Exception:
            """Return the error that the caller gets who gave `fields`."""
            return InvalidJobError(describe(error, cls))

        @classmethod
        def by_name(cls, positional: tuple[Any, ...], fields: Mapping[str, Any]) -> str:
            """Return, as code, the call of the class that names the fields given by position."""
            return call_text(cls.__name__, dict(zip(cls.model_fields, positional, strict=False)) | dict(fields))

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(name, value)
            except ValidationError as error:
                raise self.refusal(error, {name: value}) from None


def call_text(name: str, kwargs: Mapping[str, object]) -> str:
    """Return a call with these arguments as code."""
    return f"{name}({', '.join(f'{key}={shown(value)}' for key, value in kwargs.items())})"


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """Describe all mistakes of a pydantic error in one line; unknown fields come first, since others follow from them.

    Args:
        error: the error.
        model: the model that refused its fields.
    """
    found = sorted(error.errors(include_url=False), key=lambda each: each["type"] not in _UNKNOWN)
    return "; ".join(_describe_one(each, model) for each in found)


_UNKNOWN = frozenset({"extra_forbidden", "no_such_attribute"})


def _describe_one(error: ErrorDetails, model: type[BaseModel]) -> str:
    *parents, name = error["loc"] or ("",)
    path = ".".join(map(str, error["loc"]))
    if error["type"] in _UNKNOWN:
        return unknown_field(str(name), _model_at(model, parents), path)
    if error["type"] == "missing":
        return f"{path} is missing: give {path}=..."
    if error["type"] == "frozen_instance":
        return f"{path} cannot be changed: make another, with model_copy(update={{{path!r}: ...}})"
    rule, quoted = rule_text(error), repr(error["input"])
    if rule.startswith(quoted):
        return f"{path}={rule}"
    return f"{path}={shown(error['input'])}{' ' if rule.startswith('must') else ': '}{rule}"


def unknown_field(name: str, model: type[BaseModel], path: str | None = None) -> str:
    """Return the message that refuses a field that the model, at `path`, does not have."""
    return f"{(path or name)!r} is not a field of {model.__name__}: {did_you_mean(name, list(model.model_fields))}"


def rule_text(error: ErrorDetails) -> str:
    """Return which rule a value breaks: "must be greater than 0"."""
    match error["type"]:
        case "literal_error":
            expected = error.get("ctx", {})["expected"]
            near = difflib.get_close_matches(str(error["input"]), re.findall(r"'(.*?)'", expected), n=1)
            return f"must be {expected}" + (f": did you mean {near[0]!r}?" if near else "")
        case "model_type":
            return f"must be a {error.get('ctx', {})['class_name']}"
        case "dict_type" | "string_type":
            return f"must be a {'dict' if error['type'] == 'dict_type' else 'text'}"
        case "tuple_type":
            return f"must be a tuple: ({shown(error['input'])},)"
        case "float_parsing" | "int_parsing":
            return f"must be {'a number' if error['type'] == 'float_parsing' else 'a whole number'}"
    rule = " ".join(error["msg"].removeprefix("Value error, ").replace("Input should", "must").split())
    return rule[:1].lower() + rule[1:]


def _model_at(model: type[BaseModel], path: Iterable[int | str]) -> type[BaseModel]:
    """Return the model of the field at `path`, or the innermost one that is found."""
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = next(_models_in(model.model_fields[part].annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
