"""Precision, recall and F1 of detected boxes at one score and one overlap: what a map with that threshold holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np

from torchgeo_debias.classes import GROUPS, ClassTable
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.evaluation.detection_inputs import Guess, Truth, gather
from torchgeo_debias.evaluation.detection_matching import HIT, MISS, outcomes

_Measure = Literal["precision", "recall", "f1"]
_MEASURES: tuple[_Measure, ...] = ("precision", "recall", "f1")

_DEFINITION = (
    "Precision, recall and F1 are those of {which} at the overlap {iou:g}, "
    "matched one to one from the surest down: found objects over guesses, found objects over objects, and "
    "2·found / (objects + guesses). Head, middle, tail and macro values are plain means over the classes with an "
    "object; 'overall' counts the guesses of all classes together."
)


class ClassFound(TypedDict):
    """Of one class; ratios are None where it has no object that counts."""

    precision: float | None
    recall: float | None
    f1: float | None
    found: int
    missed: int
    false_alarms: int
    group: str


@dataclass(frozen=True)
class FoundScores:
    """What of the objects is found at one score and one overlap.

    Attributes:
        iou: Overlap from which a guess hits.
        min_score: Score from which a guess counts; None where all do.
        means: ``precision``, ``recall`` and ``f1`` in 0..1, each under ``head``, ``middle``, ``tail``, ``macro`` and
            ``overall``; nan where undefined.
        per_class: By class name, in the order of class ids.
        definition: What the numbers mean, for printing beside them.
    """

    iou: float
    min_score: float | None
    means: dict[str, dict[str, float]]
    per_class: dict[str, ClassFound]
    definition: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; undefined numbers are null."""
        return {
            "iou": self.iou,
            "min_score": self.min_score,
            **{
                measure: {key: None if math.isnan(value) else value for key, value in values.items()}
                for measure, values in self.means.items()
            },
            "per_class": {name: dict(row) for name, row in self.per_class.items()},
            "definition": self.definition,
        }


def found_scores(
    truths: Sequence[Truth],
    guesses: Sequence[Guess],
    table: ClassTable,
    *,
    iou: float = 0.5,
    min_score: float | None = None,
) -> FoundScores:
    """Score the boxes from a score on against the truth; ``definition`` of the result says how.

    Args:
        truths: What is in each image.
        guesses: What was found in the same images, in the same order.
        table: The classes with their groups.
        iou: Overlap (intersection over union) from which a guess hits, in (0, 1].
        min_score: Guesses below are left out; none by default, since scores may be of any range.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If boxes, scores or classes are not what they should be.
    """
    if not 0 < iou <= 1:
        raise ConfigError(f"The overlap from which an object counts as found lies above 0 and up to 1; received {iou}.")
    if min_score is not None:
        if not math.isfinite(min_score):
            raise ConfigError(f"The lowest score must be a number; received {min_score}.")
        guesses = [_from(guess, min_score) for guess in guesses]
    there, ignored, found = gather(truths, guesses, len(table.names), None)
    (row,) = outcomes(there, ignored, found, [iou], "coco")
    n = len(table.names)
    objects, hits, misses = (
        np.bincount(ids, minlength=n)
        for ids in (there.classes[~ignored], found.classes[row == HIT], found.classes[row == MISS])
    )
    per_class = {
        name: _of_class(int(hits[i]), int(misses[i]), int(objects[i]), table.groups[i])
        for i, name in enumerate(table.names)
    }
    counted = [i for i in range(n) if i != table.background]
    overall = _ratios(*(int(counts[counted].sum()) for counts in (hits, misses, objects)))
    members: dict[str, list[int]] = {**{group: table.of_group(group) for group in GROUPS}, "macro": counted}
    rows = list(per_class.values())
    means: dict[str, dict[str, float]] = {
        measure: {
            **{key: _mean([rows[i][measure] for i in ids]) for key, ids in members.items()},
            "overall": _mean([overall[measure]]),
        }
        for measure in _MEASURES
    }
    which = "all guesses" if min_score is None else f"the guesses with a score of {min_score:g} or more"
    return FoundScores(iou, min_score, means, per_class, _DEFINITION.format(iou=iou, which=which))


def _of_class(hits: int, misses: int, objects: int, group: str) -> ClassFound:
    ratios = _ratios(hits, misses, objects)
    return ClassFound(
        precision=ratios["precision"],
        recall=ratios["recall"],
        f1=ratios["f1"],
        found=hits,
        missed=objects - hits,
        false_alarms=misses,
        group=group,
    )


def _from(guess: Guess, min_score: float) -> Guess:
    sure = np.asarray(guess.scores) >= min_score
    return Guess(*(np.asarray(values)[sure] for values in guess))


def _ratios(hits: int, misses: int, objects: int) -> dict[_Measure, float | None]:
    """As scikit-learn has it, the precision of no guess is 0 where there is an object."""
    if not objects:
        return dict.fromkeys(_MEASURES)
    guesses = hits + misses
    return {"precision": hits / max(guesses, 1), "recall": hits / objects, "f1": 2 * hits / (objects + guesses)}


def _mean(values: Sequence[float | None]) -> float:
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else math.nan
