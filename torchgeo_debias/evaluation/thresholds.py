"""Score limits of classes: from scores to one class, to the set of classes it may be, or to no answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

Abstain = Literal["never", "omit", "unknown"]
"""What becomes of a chip whose nearest class does not reach its threshold: that class, nothing, or :data:`UNKNOWN`."""

NOTHING, UNKNOWN = -1, -2
"""In place of a class id: not classified, and seen but like no class."""

UNKNOWN_NAME = "unknown"
"""Stands in place of a class where :data:`UNKNOWN` is the answer."""

_EXTREME = 50
"""Largest temperature, and one over the smallest: beyond it scores are all alike, or 0 and 1."""

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
    for, see :func:`~torchgeo_debias.evaluation.decisions.fit_thresholds`. A class without a guarantee is always in it.

    The one answer is the *nearest* class: that with the largest score relative to its threshold, where thresholds below
    chance, 1 / C of C classes, count as chance. Without this floor a class that is hardly recognised, whose threshold
    is next to 0, would be the answer to nearly everything. Classes that are not possible compete too, so that one that
    just misses its threshold does not lose to one that is possible at next to no score; it is then for ``abstain`` to
    say what becomes of the chip. So an answer is possible wherever any class reaches both its threshold and chance. A
    class without a guarantee answers from chance on.

    Attributes:
        names: Of the classes, in the order of their ids.
        classes: Of each its limit.
        recall: What was asked for, above 0 and below 1.
        temperature: By which logits are divided before the scores are compared, 1/50..50; 1 changes nothing.
        abstain: What becomes of a chip whose nearest class is not possible.
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
        if not 1 / _EXTREME <= self.temperature <= _EXTREME:
            raise ConfigError(
                f"The temperature of scores must lie between 1/{_EXTREME} and {_EXTREME}; received {self.temperature}."
            )
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
        answers = (probabilities / np.maximum(limits, chance)).argmax(axis=1)
        if self.abstain != "never":
            reached = probabilities[np.arange(len(answers)), answers] >= limits[answers]
            answers = np.where(reached, answers, NOTHING if self.abstain == "omit" else UNKNOWN)
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
    logits = np.log(np.maximum(probabilities.astype(np.float64), _TINY)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: npt.NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return scaled
