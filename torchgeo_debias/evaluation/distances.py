"""How far classes lie apart, and how widely each one is spread, in feature space.

The debLoRA paper's appendix reports cosine distances between head and tail and among tail classes. Its exact formula
has not been published with the code; the definitions here are our reconstruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics.pairwise import cosine_distances, paired_cosine_distances

from torchgeo_debias.classes import GROUPS, ClassTable
from torchgeo_debias.errors import DataError


@dataclass(frozen=True)
class ClassDistances:
    """Cosine distances (1 - cosine similarity, 0..2) within and between classes; nan where a class has no sample.

    Attributes:
        names: Class names in the order of class ids.
        intra: Mean distance of a class's samples to the class mean, shape (C,).
        inter: Distance between class means, shape (C, C), zero on the diagonal.
        intra_groups: Mean of ``intra`` over the classes of ``head``, ``middle`` and ``tail``.
        inter_groups: Mean of ``inter`` over the pairs of different classes of two groups, under ``head-head``,
            ``head-middle``, ``head-tail``, ``middle-middle``, ``middle-tail`` and ``tail-tail``.
    """

    names: tuple[str, ...]
    intra: npt.NDArray[np.float64]
    inter: npt.NDArray[np.float64]
    intra_groups: dict[str, float]
    inter_groups: dict[str, float]

    @property
    def means(self) -> dict[str, float]:
        """All means of groups: ``within tail`` and so on, then ``between head-tail`` and so on."""
        return {
            **{f"within {key}": value for key, value in self.intra_groups.items()},
            **{f"between {key}": value for key, value in self.inter_groups.items()},
        }

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types; undefined distances are null."""
        return {
            "names": list(self.names),
            "intra": _nulls(self.intra.tolist()),
            "inter": [_nulls(row) for row in self.inter.tolist()],
            "intra_groups": dict(zip(self.intra_groups, _nulls(list(self.intra_groups.values())), strict=True)),
            "inter_groups": dict(zip(self.inter_groups, _nulls(list(self.inter_groups.values())), strict=True)),
        }


def class_distances(
    features: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]], table: ClassTable
) -> ClassDistances:
    """Measure cosine distances within and between classes (reconstructed, see the module's note).

    Args:
        features: Features (N, D), any unit; only their direction counts.
        labels: Class ids (N,).
        table: The classes; a background class has its distances but is in no group mean.

    Raises:
        DataError: If the shapes do not fit, an id is not a class, or a feature is not finite.
    """
    features, labels = np.asarray(features), np.asarray(labels)
    n_classes = len(table.names)
    if features.ndim != 2 or labels.shape != (len(features),) or not len(labels):
        raise DataError(
            f"Distances need one label a feature row; got features {features.shape}, labels {labels.shape}."
        )
    if labels.min() < 0 or labels.max() >= n_classes:
        raise DataError(f"Labels reach from {labels.min()} to {labels.max()}, but there are {n_classes} classes.")
    if not np.isfinite(features).all():
        raise DataError("Features hold values that are not finite; extract them again without NaN pixels.")

    present = np.unique(labels)
    means = np.stack([features[labels == c].mean(axis=0, dtype=np.float64) for c in present])
    intra = np.full(n_classes, np.nan)
    for c, mean in zip(present, means, strict=True):
        own = features[labels == c]
        intra[c] = paired_cosine_distances(own, np.broadcast_to(mean, own.shape)).mean()
    inter = np.full((n_classes, n_classes), np.nan)
    inter[np.ix_(present, present)] = cosine_distances(means)

    different = np.where(np.eye(n_classes, dtype=bool), np.nan, inter)
    ids = {group: table.of_group(group) for group in GROUPS}
    return ClassDistances(
        table.names,
        intra,
        inter,
        {group: _mean(intra[ids[group]]) for group in GROUPS},
        {
            f"{one}-{other}": _mean(different[np.ix_(ids[one], ids[other])])
            for one, other in combinations_with_replacement(GROUPS, 2)
        },
    )


def _mean(values: npt.NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else math.nan


def _nulls(values: list[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]
