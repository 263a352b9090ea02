"""What a long-tail method is: a name, a source, settings, and a function that fits a head on stored features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from torchgeo_debias.debias.head import LinearHead
from torchgeo_debias.debias.samples import Samples
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

Origin = Literal["as published", "adapted", "ours"]


@dataclass(frozen=True)
class Method:
    """One way of fitting a linear head under a long tail.

    Methods see standardised features (the scaling is folded into the head) and, where they minimise a loss, the same
    objective: the sum of the samples' losses, whose weights add up to the number of samples, plus ``|W|^2 / 2``. So
    they differ by the method only. Cosine heads see features of unit length and keep their rows, whose length is
    fixed, near the class means; ``docs/methods.md`` lists what else a method does in its own way.

    Attributes:
        name: As the command line and tables write it.
        title: A few words for tables and help.
        source: Citation in a line, with venue and year.
        origin: ``adapted`` means: to a linear head on stored features.
        settings: Frozen dataclass whose fields all have defaults.
        fit: Of the samples, the settings and a seed. Draws only from the seed, changes no input.
    """

    name: str
    title: str
    source: str
    origin: Origin
    settings: type
    fit: Callable[[Samples, Any, int], LinearHead]


@dataclass(frozen=True)
class NoSettings:
    """Of a method that has nothing to set."""


def read_settings(word: str, name: str, kinds: Mapping[str, type], values: Mapping[str, Any] | None) -> Any:  # noqa: ANN401
    """The settings of an entry of a registry, with defaults for what ``values`` leaves out.

    Args:
        word: What the registry holds, for sentences.
        name: Of the entry.
        kinds: The settings of each entry.
        values: By field name.

    Raises:
        ConfigError: If there is no such entry or setting, or a value cannot be.
    """
    if name not in kinds:
        raise ConfigError(f"There is no {word} {name!r}: choose among {', '.join(kinds)}.")
    if values and not fields(kinds[name]):
        raise ConfigError(f"The {word} {name} has nothing to set; received {dict(values)}.")
    return read_fields(kinds[name], values or {}, f"{name}.")
