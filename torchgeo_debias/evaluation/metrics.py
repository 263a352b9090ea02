"""How well each class, and each group of classes, is recognised.

Two definitions of a group's F1 are in use and they disagree (``Scores.f1`` and ``Scores.compat``), so every result
carries the sentence that says which is which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics as sk

from torchgeo_debias.classes import GROUPS, ClassTable
from torchgeo_debias.errors import ConfigError, DataError

Labels = npt.NDArray[np.integer[Any]]

ECE_BINS = 15

DEFINITION = (
    "Each class has one F1, 2·TP / (2·TP + FP + FN), taken from the confusion matrix of all test samples. Head, middle "
    "and tail F1 are the plain means over the classes of the group, macro F1 over all classes; a background class and "
    "classes without a test sample stay outside these means. Balanced accuracy is the mean and g-mean the geometric "
    "mean of the recalls of the same classes; accuracy is the share of all test samples, background included. ECE is "
    f"the expected calibration error of the top class in {ECE_BINS} bins of equal width. 'compat' is the group F1 of "
    "the code released with the debLoRA paper: only samples whose true class is in the group are kept and the mean "
    "runs over every class that occurs among their true or predicted labels, so false alarms from other groups vanish "
    "and a stray prediction adds a zero; it is given for comparison only."
)


class ClassScore(TypedDict):
    """Scores of one class; None where a ratio is undefined because the class has no test sample."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    train_count: int
    group: str


@dataclass(frozen=True)
class Scores:
    """The result of one evaluation.

    Attributes:
        f1: F1 in 0..1 under the keys ``head``, ``middle``, ``tail`` and ``macro``; nan for a group of which no class
            has a test sample.
        per_class: Scores by class name, in the order of class ids, the background included.
        accuracy: Share of all test samples with the right class.
        balanced_accuracy: Mean recall of the classes with test samples, the background left out.
        g_mean: Geometric mean of the same recalls.
        ece: Expected calibration error of the top class, None where no probabilities were given.
        compat: Group F1 as the released debLoRA code computes it, under ``head``, ``middle`` and ``tail``.
        absent: Names of the classes without a test sample.
        confusion: Confusion matrix (C, C), rows are the true and columns the predicted classes.
        definition: What the numbers mean, for printing beside them.
    """

    f1: dict[str, float]
    per_class: dict[str, ClassScore]
    accuracy: float
    balanced_accuracy: float
    g_mean: float
    ece: float | None
    compat: dict[str, float]
    absent: list[str]
    confusion: list[list[int]]
    definition: str = DEFINITION

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; undefined numbers are null, so that strict JSON holds them."""
        return {
            "f1": {key: _null(value) for key, value in self.f1.items()},
            "per_class": {name: dict(values) for name, values in self.per_class.items()},
            "accuracy": self.accuracy,
            "balanced_accuracy": _null(self.balanced_accuracy),
            "g_mean": _null(self.g_mean),
            "ece": self.ece,
            "compat": {key: _null(value) for key, value in self.compat.items()},
            "absent": list(self.absent),
            "confusion": [list(row) for row in self.confusion],
            "definition": self.definition,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Scores:
        """Read what :meth:`to_json` wrote."""
        return cls(
            f1={key: _nan(value) for key, value in values["f1"].items()},
            per_class={name: cast(ClassScore, dict(row)) for name, row in values["per_class"].items()},
            accuracy=float(values["accuracy"]),
            balanced_accuracy=_nan(values["balanced_accuracy"]),
            g_mean=_nan(values["g_mean"]),
            ece=values["ece"],
            compat={key: _nan(value) for key, value in values["compat"].items()},
            absent=list(values["absent"]),
            confusion=[list(row) for row in values["confusion"]],
            definition=values["definition"],
        )


class Interval(NamedTuple):
    """A mean over repeated runs with its confidence interval.

    Attributes:
        mean: Mean of the runs.
        std: Standard deviation of the runs (n - 1 in the denominator), nan for a single run.
        low: Lower end of the interval of the mean, nan for a single run.
        high: Upper end, likewise.
        n: Number of runs.
    """

    mean: float
    std: float
    low: float
    high: float
    n: int


def confusion(y_true: Labels, y_pred: Labels, n_classes: int) -> npt.NDArray[np.int64]:
    """Count how often each true class (row) was given each class (column).

    Args:
        y_true: True class ids (N,), in 0..n_classes - 1.
        y_pred: Predicted class ids (N,), likewise.
        n_classes: Number of classes C.

    Returns:
        Counts (C, C), int64.

    Raises:
        DataError: If the arrays are empty, differ in length or hold an id that is not a class.
    """
    y_true, y_pred = _ids(y_true, n_classes, "true"), _ids(y_pred, n_classes, "predicted")
    if len(y_true) != len(y_pred):
        raise DataError(f"Each test sample needs one prediction; received {len(y_pred)} for {len(y_true)} samples.")
    return np.bincount(y_true * n_classes + y_pred, minlength=n_classes**2).reshape(n_classes, n_classes)


def score(
    y_true: Labels,
    probabilities: npt.NDArray[np.floating[Any]] | None,
    table: ClassTable,
    y_pred: Labels | None = None,
) -> Scores:
    """Score predictions against the truth; :data:`DEFINITION` says how each number is computed.

    Args:
        y_true: True class ids (N,).
        probabilities: Class probabilities (N, C), rows summing to 1; None where there are only decisions.
        table: The classes with their training counts and groups.
        y_pred: Predicted class ids (N,); the most probable class where left out.

    Raises:
        ConfigError: If neither probabilities nor predictions are given.
        DataError: If shapes do not fit, an id is not a class, or the probabilities are none.
    """
    n_classes = len(table.names)
    y_true = _ids(y_true, n_classes, "true")
    if probabilities is not None:
        probabilities = _probabilities(probabilities, (len(y_true), n_classes))
        y_pred = probabilities.argmax(axis=1) if y_pred is None else y_pred
    if y_pred is None:
        raise ConfigError("Nothing to score: give the probabilities or the predicted classes of the test samples.")
    matrix = confusion(y_true, y_pred, n_classes)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        y_true, y_pred, labels=np.arange(n_classes), zero_division=0
    )
    present = support > 0
    counted = [i for i in range(n_classes) if present[i] and i != table.background]
    members = {group: [i for i in table.of_group(group) if present[i]] for group in GROUPS}
    return Scores(
        f1={**{group: _mean(f1[ids]) for group, ids in members.items()}, "macro": _mean(f1[counted])},
        per_class={
            name: ClassScore(
                precision=float(precision[i]) if present[i] else None,
                recall=float(recall[i]) if present[i] else None,
                f1=float(f1[i]) if present[i] else None,
                support=int(support[i]),
                train_count=table.counts[i],
                group=table.groups[i],
            )
            for i, name in enumerate(table.names)
        },
        accuracy=float(matrix.trace() / matrix.sum()),
        balanced_accuracy=_mean(recall[counted]),
        g_mean=float(stats.gmean(recall[counted])) if counted else math.nan,
        ece=None if probabilities is None else _calibration_error(y_true, probabilities),
        compat={group: _released_f1(y_true, np.asarray(y_pred), table.of_group(group)) for group in GROUPS},
        absent=[name for i, name in enumerate(table.names) if not present[i]],
        confusion=matrix.tolist(),
    )


def summarise(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean over repeated runs (seeds, class orders) with its Student-t confidence interval.

    Args:
        values: One number a run.
        level: Coverage of the interval, between 0 and 1.

    Raises:
        DataError: If there is no run.
        ConfigError: If ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"The level of a confidence interval lies between 0 and 1; received {level}.")
    runs = np.asarray(values, dtype=np.float64)
    n = len(runs)
    if n == 0:
        raise DataError("There is nothing to summarise: at least one run is needed.")
    mean = float(runs.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    std = float(runs.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * std / math.sqrt(n)
    return Interval(mean, std, mean - half, mean + half, n)


def compare(before: Sequence[float], after: Sequence[float], level: float = 0.95) -> Interval:
    """Summarise the paired difference ``after - before``, run by run.

    Runs on the same seed share most of their luck, which the difference cancels: with few seeds only paired
    differences mean anything.

    Args:
        before: One number a run of the first method.
        after: The same runs of the second method, in the same order.
        level: Coverage of the interval.

    Raises:
        DataError: If the methods have different numbers of runs, or none.
    """
    if len(before) != len(after):
        raise DataError(f"A paired comparison needs the same runs of both; received {len(before)} and {len(after)}.")
    return summarise([b - a for a, b in zip(before, after, strict=True)], level)


def _ids(ids: Labels, n_classes: int, what: str) -> npt.NDArray[np.int64]:
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise DataError(f"The {what} classes must be a list of at least one class id; received shape {ids.shape}.")
    if ids.min() < 0 or ids.max() >= n_classes:
        raise DataError(
            f"The {what} classes hold ids from {ids.min()} to {ids.max()}, "
            f"but {n_classes} classes have ids from 0 to {n_classes - 1}."
        )
    return ids.astype(np.int64)


def _probabilities(values: npt.NDArray[np.floating[Any]], shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    rows = np.asarray(values).astype(np.float64)
    if rows.shape != shape:
        raise DataError(f"Probabilities must have one row a sample and one column a class, {shape}; got {rows.shape}.")
    # The tolerance lets half-precision softmax through and still catches logits.
    if not np.isfinite(rows).all() or rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > 0.01:
        raise DataError("Probabilities must be finite, not negative and sum to 1 for each sample; apply softmax first.")
    return rows


def _calibration_error(y_true: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> float:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    # torchmetrics computes in float32, puts a probability of exactly 1 into a bin of its own and takes anything above
    # for a logit.
    below_one = np.minimum(probabilities.astype(np.float32), np.nextafter(np.float32(1), np.float32(0)))
    error = multiclass_calibration_error(
        torch.from_numpy(below_one), torch.from_numpy(y_true), num_classes=probabilities.shape[1], n_bins=ECE_BINS
    )
    return float(error)


def _released_f1(y_true: npt.NDArray[np.int64], y_pred: Labels, group: list[int]) -> float:
    rows = np.isin(y_true, group)
    if not rows.any():
        return math.nan
    return float(sk.f1_score(y_true[rows], y_pred[rows], average="macro", zero_division=0))


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else math.nan


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)
