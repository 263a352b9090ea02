"""Dataclasses of values from outside: what fits becomes one, what does not is refused with the name of its field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields


@dataclass(frozen=True)
class Inner:
    """A part."""

    side: int
    shares: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outer:
    """A whole."""

    name: str
    inner: Inner = field(default_factory=lambda: Inner(3))
    rate: float | None = None
    kind: Literal["a", "b"] = "a"
    deep: bool = False


def test_values_become_the_dataclass_and_what_is_left_out_its_defaults() -> None:
    assert read_fields(Outer, {"name": "x"}) == Outer("x")
    values = {"name": "x", "inner": {"side": 4, "shares": [1, 0.5]}, "rate": 2, "kind": "b", "deep": True}
    assert read_fields(Outer, values) == Outer("x", Inner(4, (1, 0.5)), 2, "b", True)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ([], r"^Outer must be an object with fields of its own; received \[\]\.$"),
        ({}, r"^The field name is missing: it must be text\.$"),
        ({"name": "x", "inner": {}}, r"^The field inner\.side is missing: it must be a whole number\.$"),
        ({"name": "x", "inner": 3}, r"^inner must be an object with fields of its own; received 3\.$"),
        ({"name": "x", "inner": {"side": True}}, r"^inner\.side must be a whole number; received True\.$"),
        (
            {"name": "x", "inner": {"side": 1, "shares": 3}},
            "^inner.shares must be a list, each part a number",
        ),
        ({"name": "x", "inner": {"side": 1, "shares": ["3"]}}, "^inner.shares must be a list, each part a number"),
        ({"name": "x", "rate": "fast"}, "^rate must be a number or null; received 'fast'"),
        ({"name": "x", "rate": float("nan")}, "^rate must be a number or null; received nan"),
        ({"name": "x", "kind": "c"}, "^kind must be one of a, b; received 'c'"),
        ({"name": "x", "deep": 1}, "^deep must be true or false; received 1"),
        ({"name": "x", "more": 1}, "^Unknown field more: choose among name, inner, rate, kind, deep"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(values: Any, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        read_fields(Outer, values)
