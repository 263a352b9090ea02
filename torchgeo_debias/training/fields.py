"""Checking values from outside, such as a JSON file, against the fields of a dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torchgeo_debias.errors import ConfigError


def check_fields(kind: type, values: Mapping[str, Any], within: str = "") -> None:
    """Refuse what a dataclass does not know or would not expect.

    Args:
        kind: A dataclass of numbers, texts, switches, choices and further dataclasses.
        values: By field name; fields may be left out, and a dataclass is a mapping in turn.
        within: Put before the field names in sentences.

    Raises:
        ConfigError: If a field is unknown or its value is of another type or none of the choices.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"Unknown field {within}{name}: choose among {', '.join(hints)}.")
        hint = hints[name]
        if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
            check_fields(hint, value, f"{within}{name}.")
        elif not _fits(value, hint):
            raise ConfigError(f"{within}{name} must be {_words(hint)}; received {value!r}.")


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401 (a type, or what typing makes of several)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
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
    if is_dataclass(hint):
        return "an object with fields of its own"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", NoneType: "null"}
    return words[hint]
