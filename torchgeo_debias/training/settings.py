"""What the configurations of all trainings have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any, Literal, Protocol, Self, get_args, get_origin, get_type_hints

from torchgeo_debias.backbones import Precision
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

_COUNTS = ("epochs", "batch_size", "accumulate", "patience")
_MOST = {"weight_decay": math.inf, "align_weight": math.inf, "warmup": 1, "seed": 2**32 - 1}


class Schedule(Protocol):
    """What the loop reads of a configuration, whatever is trained."""

    @property
    def epochs(self) -> int: ...  # noqa: D102
    @property
    def lr(self) -> float: ...  # noqa: D102
    @property
    def weight_decay(self) -> float: ...  # noqa: D102
    @property
    def warmup(self) -> float: ...  # noqa: D102
    @property
    def accumulate(self) -> int: ...  # noqa: D102
    @property
    def precision(self) -> Precision: ...  # noqa: D102
    @property
    def compile(self) -> bool: ...  # noqa: D102
    @property
    def gradient_checkpointing(self) -> bool: ...  # noqa: D102
    @property
    def devices(self) -> int: ...  # noqa: D102
    @property
    def patience(self) -> int: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    def to_json(self) -> dict[str, Any]: ...  # noqa: D102


class Settings:
    """The base of their dataclasses: checks, and the way to JSON and back."""

    def _check(
        self, *, counts: Iterable[str] = (), positive: Iterable[str] = (), most: Mapping[str, float] | None = None
    ) -> None:
        """Refuse values out of range, of the fields that all trainings have and of further ones.

        Args:
            counts: Names of fields that must be at least 1.
            positive: Of those that must be above 0, and finite.
            most: Of those that must be at least 0, with the largest value of each.

        Raises:
            ConfigError: If a value is out of range, or none of the choices.
        """
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and values[name] not in get_args(hint):
                raise ConfigError(f"Unknown {name} {values[name]!r}: choose one of {', '.join(get_args(hint))}.")
        for name in (*_COUNTS, *counts):
            if values[name] < 1:
                raise ConfigError(f"{name} must be at least 1; received {values[name]}.")
        for name in ("lr", *positive):
            if not 0 < values[name] < math.inf:
                raise ConfigError(f"{name} must be positive; received {values[name]}.")
        for name, limit in {**_MOST, **(most or {})}.items():
            if not 0 <= values[name] <= limit:
                raise ConfigError(f"{name} must lie between 0 and {limit}; received {values[name]}.")
        if not 0 <= values["val_share"] < 1:
            raise ConfigError(f"val_share must lie between 0 and 1; received {values['val_share']}.")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote; fields that are left out keep their defaults.

        Raises:
            ConfigError: If a field is unknown or its value is of another type.
        """
        return read_fields(cls, values)
