"""Score limits of classes: from scores to one class, to the set of classes it may be, or to no answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

Abstain = Literal["never", "omit", "unknown"]
"""What becomes of a chip no class of which reaches its threshold: the nearest class, nothing, or :data:`UNKNOWN`."""

NOTHING, UNKNOWN = -1, -2
"""In place of a class id: not classified, and seen but like no class."""

UNKNOWN_NAME = "unknown"
"""Stands in place of a class where :data:`UNKNOWN` is the answer."""

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ClassThreshold:
    """The limit of one class.

    Attributes:
        threshold: Score from which the class is among those that a chip or box may be, 0..1; 0 without a guarantee.
        samples: Of the class, from which it was found.
        guaranteed: Whether they were enough for the recall that was asked for.
    """

    threshold: float
    samples: int
    guaranteed: bool

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"A threshold must lie between 0 and 1; received {self.threshold}.")
        if self.samples < 0:
            raise ConfigError(f"The samples behind a threshold cannot be {self.samples}.")


@dataclass(frozen=True)
class Thresholds:
    """Limits of all classes of a model, and how a class is chosen by them.

    A class is *possible* where its score reaches its threshold; that set holds the true class with the recall asked
    for, see :func:`~torchgeo_debias.evaluation.decisions.fit_thresholds`. The one answer is, of the possible classes,
    that with the largest score relative to its threshold, where thresholds below chance, 1 / C of C classes, count as
    chance: without this floor a class that is hardly recognised, whose threshold is next to 0, would be the answer to
    nearly everything. A class without a guarantee answers from chance on.

    Attributes:
        names: Of the classes, in the order of their ids.
        classes: Of each its limit.
        recall: What was asked for, above 0 and below 1.
        temperature: By which logits are divided before the scores are compared; 1 changes nothing.
        abstain: What becomes of a chip that is possibly of no class.
        facts: How they were found, as plain JSON; nothing hangs on it.
    """

    names: tuple[str, ...]
    classes: tuple[ClassThreshold, ...]
    recall: float
    temperature: float = 1.0
    abstain: Abstain = "never"
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_recall(self.recall)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"The temperature of scores must be positive; received {self.temperature}.")
        if self.abstain not in get_args(Abstain):
            raise ConfigError(f"To abstain is one of {', '.join(get_args(Abstain))}; received {self.abstain!r}.")
        if len(self.names) != len(self.classes):
            raise ConfigError(f"{len(self.names)} classes cannot have {len(self.classes)} thresholds.")
        if self.abstain == "unknown" and UNKNOWN_NAME in self.names:
            raise ConfigError(
                f"A class is called {UNKNOWN_NAME!r} already: let chips that fit no class be left out instead (omit)."
            )

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The thresholds (C,)."""
        return np.array([one.threshold for one in self.classes])

    @property
    def guaranteed(self) -> npt.NDArray[np.bool_]:
        """(C,) of which classes there were samples enough."""
        return np.array([one.guaranteed for one in self.classes])

    def limits(self, usual: float) -> npt.NDArray[np.float64]:
        """The thresholds (C,), and ``usual`` for classes without a guarantee."""
        return np.where(self.guaranteed, self.values, usual)

    def possible(self, probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        """(N, C) whether scores (N, C) reach their thresholds; never in rows of NaN."""
        reached: npt.NDArray[np.bool_] = np.greater_equal(probabilities, self.values)
        return reached

    def decide(self, probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        """Class ids (N,) for scores (N, C), :data:`NOTHING` in rows of NaN and where it abstains so.

        Args:
            probabilities: Scores after the temperature, which a predictor applies; see :func:`tempered`.
        """
        chance = 1 / len(self.names)
        limits = self.limits(chance)
        relative = probabilities / np.maximum(limits, chance)
        reached = np.greater_equal(probabilities, limits)
        some = reached.any(axis=1)
        answers = np.where(reached | ~some[:, None], relative, -1.0).argmax(axis=1)
        if self.abstain != "never":
            answers = np.where(some, answers, NOTHING if self.abstain == "omit" else UNKNOWN)
        return np.where(np.isnan(probabilities[:, 0]), NOTHING, answers)

    def meaning(self) -> dict[str, Any]:
        """All that answers hang on, as plain JSON."""
        return {
            "recall": self.recall,
            "temperature": self.temperature,
            "abstain": self.abstain,
            "classes": {name: dict(vars(one)) for name, one in zip(self.names, self.classes, strict=True)},
        }

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {**self.meaning(), "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, values: object, names: Sequence[str]) -> Thresholds | None:
        """Read what :meth:`to_json` wrote; None of an empty object.

        Args:
            values: The object.
            names: Of the classes that it must name, in the order of their ids.

        Raises:
            ConfigError: If it holds something else.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"Thresholds must be an object; received {values!r}.")
        if not values:
            return None
        given = values.get("classes")
        if not isinstance(given, dict) or set(given) != set(names):
            raise ConfigError("Thresholds must name each class of the model once, and no other.")
        facts = values.get("facts", {})
        if not isinstance(facts, dict):
            raise ConfigError(f"The facts about thresholds must be an object; received {facts!r}.")
        rest = {name: value for name, value in values.items() if name not in ("classes", "facts")}
        settings = read_fields(_Settings, rest, "thresholds.")
        classes = tuple(read_fields(ClassThreshold, given[name], f"thresholds.classes.{name}.") for name in names)
        return cls(tuple(names), classes, **vars(settings), facts=facts)


@dataclass(frozen=True)
class _Settings:
    recall: float
    temperature: float
    abstain: Abstain


def check_recall(recall: float) -> None:
    """Refuse a recall that no thresholds can have.

    Raises:
        ConfigError: If it does not lie between 0 and 1.
    """
    if not 0 < recall < 1:
        raise ConfigError(f"The recall to reach must lie above 0 and below 1; received {recall}.")


def tempered(probabilities: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """Probabilities (N, C) float32 as they are when logits are divided by a temperature; rows of NaN stay so.

    Logits are known from probabilities but for a constant, which falls out: softmax(log p / T). Guo, Pleiss, Sun,
    Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    if temperature == 1:
        return probabilities
    logits = np.log(np.maximum(probabilities, _TINY)) / np.float32(temperature)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: npt.NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return scaled
