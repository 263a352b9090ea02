"""What a long-tail method is: a name, a source, settings, and a function that fits a head on stored features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torchgeo_debias.debias.head import LinearHead
from torchgeo_debias.debias.samples import Samples

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
