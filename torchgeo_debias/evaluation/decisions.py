"""Finding the thresholds of classes on labelled samples that the model has not seen, and what they come to.

Thresholds by class that keep a recall are class-conditional split conformal prediction: Vovk, "Conditional validity of
inductive conformal predictors", ACML 2012; Sadinle, Lei, Wasserman, "Least ambiguous set-valued classifiers with
bounded error levels", JASA 114, 2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from torchgeo_debias.classes import GROUPS, ClassTable
from torchgeo_debias.errors import DataError
from torchgeo_debias.evaluation.detection_inputs import Guess, Truth, gather
from torchgeo_debias.evaluation.detection_matching import HIT, outcomes
from torchgeo_debias.evaluation.metrics import Labels, score
from torchgeo_debias.evaluation.thresholds import Abstain, ClassThreshold, Thresholds, check_recall, tempered

IOU = 0.5
"""Overlap from which an object counts as found."""

_SHARE = 5
"""One of so many samples of a class is for the temperature, where enough are left for its threshold."""

_LEAST = 30
"""With fewer samples than these no temperature is fitted."""

_SLACK = 1e-4
"""Share by which thresholds are lowered: other batches and machines round scores another way."""

DEFINITION = (
    "Coverage of a class is the share of its samples whose score of that class reaches its threshold, recall the share "
    "that is answered with it, precision the share of answers of it that are right. Coverage is what the thresholds "
    "were made for; recall is lower where another class is nearer to its own. A class without a guarantee has the "
    "threshold 0, so that its coverage is 1 and says nothing, and is the answer only from chance on, 1 / number of "
    "classes. Head, middle, tail and macro values are plain means over the classes with a sample, a background class "
    "left out."
)


def least_samples(recall: float) -> int:
    """Samples of a class below which no threshold above 0 keeps a recall: ceil(recall / (1 - recall)).

    The recall r of the k-th smallest of n scores is r = 1 - k / (n + 1) at least, and k must be 1 or more, so that
    n + 1 >= 1 / (1 - r). Nine for 0.9, 19 for 0.95, 99 for 0.99.

    Raises:
        ConfigError: If the recall does not lie between 0 and 1.
    """
    check_recall(recall)
    wanted = _exact(recall)
    return math.ceil(wanted / (1 - wanted))


def conformal_threshold(scores: npt.NDArray[np.floating[Any]], recall: float) -> ClassThreshold:
    """The largest threshold that a new sample of a class reaches with a probability of at least ``recall``.

    It is the k-th smallest of the n scores, k = floor((n + 1) * (1 - recall)): of n + 1 exchangeable scores the new
    one is as likely to be in each place, and lies below the k-th of the others in k places at most; ties only help.

    Args:
        scores: (n,) of the true class, one for each of its samples, 0..1; below 0 for what was not found at all.
        recall: Wanted, above 0 and below 1.

    Returns:
        The threshold; 0 and no guarantee where there are fewer than :func:`least_samples`, or where so much was not
        found that no score would do.

    Raises:
        ConfigError: If the recall is out of range.
        DataError: If a score is not a number.
    """
    check_recall(recall)
    if np.isnan(scores).any():
        raise DataError("A score is not a number: thresholds need the scores of a model that gave an answer.")
    place = math.floor((len(scores) + 1) * (1 - _exact(recall)))
    if place == 0:
        return ClassThreshold(0.0, len(scores), False)
    value = float(np.sort(scores)[place - 1])
    if value < 0:
        return ClassThreshold(0.0, len(scores), False)
    return ClassThreshold(value * (1 - _SLACK), len(scores), True)


def fit_temperature(labels: Labels, probabilities: npt.NDArray[np.float32]) -> float:
    """The temperature under which the labels are likeliest (Guo et al., ICML 2017), between 1/20 and 20.

    Args:
        labels: (N,) class ids.
        probabilities: (N, C).
    """

    def surprise(log_temperature: float) -> float:
        scaled = tempered(probabilities, math.exp(log_temperature))
        likelihood = scaled[np.arange(len(labels)), labels].astype(np.float64)
        return float(-np.log(np.maximum(likelihood, np.finfo(np.float32).tiny)).mean())

    bounds = (-math.log(20), math.log(20))
    return math.exp(minimize_scalar(surprise, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)


def fit_thresholds(
    labels: Labels,
    probabilities: npt.NDArray[np.float32],
    table: ClassTable,
    *,
    recall: float = 0.9,
    abstain: Abstain = "never",
    seed: int = 0,
) -> Thresholds:
    """Temperature and thresholds of a classifier.

    Each class is possible for a new sample of it with a probability of at least ``recall``, over the draw of the
    samples here and the new one, if all of its samples are drawn alike and the model has seen none of them. For that
    the temperature is fitted on other samples than the thresholds: on one of five of each class that keeps
    :func:`least_samples` without them, chosen by the seed; it stays 1 where these are fewer than 30.

    Args:
        labels: (N,) class ids.
        probabilities: (N, C) of the model as it is, rows sum to 1.
        table: The classes.
        recall: Wanted of each class, above 0 and below 1.
        abstain: What becomes of a chip whose nearest class is not possible.
        seed: Of the choice.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If labels and probabilities are not what they should be.
    """
    least = least_samples(recall)
    score(labels, probabilities, table)  # refuses what is no scores
    labels = np.asarray(labels)
    first = _for_temperature(labels, len(table.names), least, seed)
    temperature = fit_temperature(labels[first], probabilities[first]) if first.any() else 1.0
    labels, before = labels[~first], probabilities[~first]
    after = tempered(before, temperature)
    classes = tuple(conformal_threshold(after[labels == i, i], recall) for i in range(len(table.names)))
    facts = {
        "samples": int((~first).sum()),
        "temperature_samples": int(first.sum()),
        "ece": {"before": score(labels, before, table).ece, "after": score(labels, after, table).ece},
    }
    return Thresholds(table.names, classes, recall, temperature, abstain, facts)


def fit_detection_thresholds(
    truths: Sequence[Truth], guesses: Sequence[Guess], table: ClassTable, *, recall: float = 0.9
) -> Thresholds:
    """Least scores at which a detector finds the objects of each class.

    The score of an object is that of the guess that finds it, matched one to one from the surest down within its class
    at an overlap of :data:`IOU`; what no guess finds has none. To leave out guesses below a threshold changes no match
    above it. The recall is as sure as that of :func:`fit_thresholds` for objects that are drawn alike one by one; those
    of one image rather resemble each other, so that few images say less than the number of objects tells.

    Args:
        truths: What is in each image.
        guesses: What was found there, from low scores on.
        table: The classes.
        recall: Wanted of each class.

    Raises:
        ConfigError: If the recall is out of range.
        DataError: If boxes, scores or classes are not what they should be.
    """
    check_recall(recall)
    there, ignored, found = gather(truths, guesses, len(table.names), None)
    (row,) = outcomes(there, ignored, found, [IOU], "coco")
    scores = np.concatenate([np.zeros(0), *(np.asarray(guess.scores, np.float64) for guess in guesses)])
    scores = np.sort(scores)[::-1]  # as the outcomes are, the surest first
    counts = np.bincount(there.classes[~ignored], minlength=len(table.names))
    classes = []
    for i, count in enumerate(counts.tolist()):
        hits = scores[(row == HIT) & (found.classes == i)]
        missed = np.full(count - len(hits), -1.0)
        classes.append(conformal_threshold(np.concatenate([hits, missed]), recall))
    facts = {"samples": int(counts.sum()), "images": len(truths), "iou": IOU}
    return Thresholds(table.names, tuple(classes), recall, facts=facts)


class ClassDecision(TypedDict):
    """What thresholds come to for one class; ratios are None where it has no sample, or no answer."""

    threshold: float
    guaranteed: bool
    coverage: float | None
    recall: float | None
    precision: float | None
    support: int


@dataclass(frozen=True)
class DecisionScores:
    """How thresholds do on labelled samples.

    Attributes:
        coverage: Of the possible classes, under ``head``, ``middle``, ``tail`` and ``macro``; None for a group of which
            no class has a sample.
        recall: Of the one answer, likewise.
        per_class: By class name, in the order of class ids.
        possible: Mean number of possible classes of a sample.
        abstained: Share of the samples whose nearest class is not possible and that get no answer.
        definition: What the numbers mean, for printing beside them.
    """

    coverage: dict[str, float | None]
    recall: dict[str, float | None]
    per_class: dict[str, ClassDecision]
    possible: float
    abstained: float
    definition: str = DEFINITION

    @property
    def sentence(self) -> str:
        """For a report."""
        macro = [value for value in (self.coverage["macro"], self.recall["macro"]) if value is not None]
        found = " and ".join(
            f"{name} {100 * value:.1f} %"
            for name, value in zip(("coverage", "recall of the answer"), macro, strict=False)
        )
        return f"{found}, {self.possible:.1f} possible classes a chip, {100 * self.abstained:.1f} % without an answer"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return dict(vars(self))


def decision_scores(
    labels: Labels, probabilities: npt.NDArray[np.float32], table: ClassTable, thresholds: Thresholds
) -> DecisionScores:
    """Score thresholds on labelled samples; :data:`DEFINITION` says how.

    Args:
        labels: (N,) class ids.
        probabilities: (N, C) after the temperature.
        table: The classes.
        thresholds: Theirs.

    Raises:
        DataError: If labels and probabilities are not what they should be.
    """
    score(labels, probabilities, table)
    possible, answers = thresholds.possible(probabilities), thresholds.decide(probabilities)
    per_class: dict[str, ClassDecision] = {}
    for i, (name, one) in enumerate(zip(table.names, thresholds.classes, strict=True)):
        true, said = labels == i, answers == i
        per_class[name] = ClassDecision(
            threshold=one.threshold,
            guaranteed=one.guaranteed,
            coverage=_mean(possible[true, i]),
            recall=_mean(said[true]),
            precision=_mean(true[said]),
            support=int(true.sum()),
        )
    rows = list(per_class.values())
    members: dict[str, list[int]] = {
        **{group: table.of_group(group) for group in GROUPS},
        "macro": list(range(len(rows))),
    }
    members["macro"] = [i for i in members["macro"] if i != table.background]
    return DecisionScores(
        coverage={
            key: _mean([c for i in ids if (c := rows[i]["coverage"]) is not None]) for key, ids in members.items()
        },
        recall={key: _mean([r for i in ids if (r := rows[i]["recall"]) is not None]) for key, ids in members.items()},
        per_class=per_class,
        possible=float(possible.sum(axis=1).mean()),
        abstained=float((answers < 0).mean()),
    )


def _exact(recall: float) -> Fraction:
    """As people write it: 1 - 0.9 in binary is a little less than a tenth, and a tenth of 10 samples would be none."""
    return Fraction(repr(float(recall)))


def _for_temperature(labels: Labels, classes: int, least: int, seed: int) -> npt.NDArray[np.bool_]:
    """(N,) which samples the temperature is fitted on; none where they are too few."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(len(labels), bool)
    for i in range(classes):
        own = rng.permutation(np.flatnonzero(labels == i))
        some = len(own) // _SHARE
        if len(own) - some >= least:
            taken[own[:some]] = True
    return taken if taken.sum() >= _LEAST else np.zeros_like(taken)


def _mean(values: npt.NDArray[np.bool_] | Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
