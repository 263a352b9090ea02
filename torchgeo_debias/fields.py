"""Dataclasses from outside, such as a JSON file: every value is checked against its field before one is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from torchgeo_debias.errors import ConfigError

T = TypeVar("T")


def read_fields(kind: type[T], values: object, within: str = "") -> T:
    """Make a dataclass of values by field name.

    Args:
        kind: A dataclass of numbers, texts, switches, choices, rows of these, mappings and further dataclasses.
        values: A mapping; fields with a default may be left out, and a dataclass is a mapping in turn.
        within: Put before the field names in sentences.

    Raises:
        ConfigError: If they are no mapping, a field is unknown or missing, or its value is of another type or none of
            the choices; and where the dataclass itself refuses a value.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{within.rstrip('.') or kind.__name__} must be {_words(kind)}; received {values!r}.")
    hints = get_type_hints(kind)
    known = [field for field in fields(kind) if field.init]  # type: ignore[arg-type]
    names = [field.name for field in known]
    read: dict[str, Any] = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(f"Unknown field {within}{name}: choose among {', '.join(names)}.")
        hint = hints[name]
        if is_dataclass(hint):
            read[name] = read_fields(hint, value, f"{within}{name}.")  # type: ignore[arg-type]
        elif not _fits(value, hint):
            raise ConfigError(f"{within}{name} must be {_words(hint)}; received {value!r}.")
        else:
            read[name] = tuple(value) if isinstance(value, list) else value
    for field in known:
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"The field {within}{field.name} is missing: it must be {_words(hints[field.name])}.")
    return kind(**read)


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 (a type, or what typing makes of several)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(part, get_args(hint)[0]) for part in value)
    if get_origin(hint) is dict:
        return isinstance(value, dict)
    if hint is float and isinstance(value, float):
        return math.isfinite(value)
    if hint in (int, float):
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _words(hint: Any) -> str:  # noqa: ANN401
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        return f"a list, each part {_words(get_args(hint)[0])}"
    if is_dataclass(hint) or get_origin(hint) is dict:
        return "an object with fields of its own"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "null"}
    return words[hint]
