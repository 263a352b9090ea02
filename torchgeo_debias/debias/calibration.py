"""Stage 2 of debLoRA: de-biased centres and calibrated features.

Eq. 2-4 of the paper are reconstructed here, not verified against its full text; ``docs/method.md`` says which
statement rests on what.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.centres import Centre, Weighting, class_means, cluster_weights, debiased_centres
from torchgeo_debias.debias.clustering import (
    Array,
    Backend,
    Clustering,
    check_clustering,
    choose_n_clusters,
    cluster,
)
from torchgeo_debias.debias.pulls import Schedule, Target, scheduled_pulls, shrinkage_pulls, targeted
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

Pull = Literal["ratio", "sqrt", "linear", "shrinkage"]
Moves = Literal["samples", "mean"]


@dataclass(frozen=True)
class DebiasSettings:
    """What happens to the features of rare classes.

    Attributes:
        n_clusters: K of K-means (paper: 32), or ``auto`` for the K of the largest mean silhouette from the square
            root of the number of classes upwards (:func:`~torchgeo_debias.debias.clustering.choose_n_clusters`).
        rho: Balance factor, ``|C_k| >= N / (K rho)``; None for plain K-means (an input of the paper's algorithm; the
            inequality and the default are ours).
        weighting: Of the clusters in a class's centre: ``counts`` (paper's Eq. 2, reconstructed), ``class-balanced`` or
            ``soft`` (:func:`~torchgeo_debias.debias.centres.cluster_weights`).
        centre: ``clusters``: weighted mean of the cluster centres; ``global``: one class-balanced mean of all class
            means for every rare class (a control).
        pull: A number in 0..1 for all classes that move, a schedule of the imbalance ratio (``ratio``, paper's Eq. 3,
            reconstructed; ``sqrt``; ``linear``), or ``shrinkage``: as far as the mean of the class is uncertain
            (:mod:`~torchgeo_debias.debias.pulls`). 0 is the control without calibration.
        gamma0: Imbalance ratio from which a schedule sets in (reconstructed: 10).
        moves: ``samples``: each feature goes its share of the way to the centre, so that the class shrinks as well
            (paper's Eq. 3, reconstructed); ``mean``: the class is shifted as a whole, by that share of the way from
            its mean to the centre, and keeps its spread.
        target: Groups whose features are moved (paper: tail), or a number: all classes with fewer training samples.
        backend: What computes K-means; see :func:`~torchgeo_debias.debias.clustering.cluster`.
    """

    n_clusters: int | Literal["auto"] = 32
    rho: float | None = 2.0
    weighting: Weighting = "counts"
    centre: Centre = "clusters"
    pull: float | Pull = "ratio"
    gamma0: float = 10.0
    moves: Moves = "samples"
    target: Target | int = "tail"
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.pull, str):
            _check_choice("pull", self.pull, Pull, "a number between 0 and 1 or ")
        elif not 0 <= self.pull <= 1:
            raise ConfigError(f"The pull must lie between 0 and 1; received {self.pull}.")
        _check_choice("centre", self.centre, Centre)
        _check_choice("weighting", self.weighting, Weighting)
        _check_choice("moves", self.moves, Moves)
        if isinstance(self.target, str):
            _check_choice("target", self.target, Target, "a number of samples or ")
        elif self.target < 1:
            raise ConfigError(f"The target must be a number of samples of 1 or more; received {self.target}.")
        if isinstance(self.n_clusters, str) and self.n_clusters != "auto":
            raise ConfigError(f"n_clusters must be a number or auto; received {self.n_clusters!r}.")
        check_clustering(1 if isinstance(self.n_clusters, str) else self.n_clusters, self.rho, self.backend)
        if self.gamma0 <= 0:
            raise ConfigError(f"gamma0 must be positive; received {self.gamma0}.")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DebiasSettings:
        """Read what :meth:`to_json` wrote; fields that are left out keep their defaults.

        Raises:
            ConfigError: If it is of another form.
        """
        return read_fields(cls, values)


def _check_choice(name: str, value: str, choices: Any, more: str = "") -> None:  # noqa: ANN401 (a Literal)
    if value not in get_args(choices):
        raise ConfigError(f"{name} must be {more}one of {', '.join(get_args(choices))}; received {value!r}.")


class Calibration(NamedTuple):
    """Result of :func:`calibrate`.

    Attributes:
        targets: (N, D), the features with those of rare classes moved.
        centres: (C, D), the de-biased centre of each class; NaN for classes that stay.
        pull: (C,), the share of the way each class was moved.
        moves: Whether each feature was pulled or the class as a whole.
        means: (C, D), the mean of each class's features before; NaN for a class without one.
        weights: (C, K) of the clusters in each class's centre, for classes that stay as well.
        clusters: The clusters, with that of each feature.
    """

    targets: Array
    centres: Array
    pull: npt.NDArray[np.float64]
    moves: Moves
    means: Array
    weights: npt.NDArray[np.float64]
    clusters: Clustering

    def moved(self, features: Array, labels: npt.NDArray[np.int64]) -> Array:
        """Features (M, D) of the classes ``labels`` (M,), those of rare classes moved as ``targets`` were."""
        return _moved(features, labels, self.centres, self.pull, self.means if self.moves == "mean" else None)

    @property
    def moved_means(self) -> Array:
        """The mean (C, D) of each class's features after; NaN for a class without one."""
        return self.moved(self.means, np.arange(len(self.means)))


def calibrate(
    features: Array, labels: npt.NDArray[np.int64], table: ClassTable, settings: DebiasSettings, seed: int = 0
) -> Calibration:
    """Cluster all features and move those of rare classes towards their de-biased centres.

    ``z_cal = z + pull_c (mu_c - z)`` with ``mu_c = sum_k w_ck mu_k``; with ``moves="mean"`` it is
    ``z + pull_c (mu_c - mean_c)``.

    Args:
        features: (N, D) of all training chips.
        labels: (N,) class ids.
        table: Classes with the counts of these chips.
        settings: See :class:`DebiasSettings`.
        seed: Of the clustering.
    """
    classes, k = len(table.names), settings.n_clusters
    if isinstance(k, str):
        k = choose_n_clusters(features, math.ceil(math.sqrt(classes)), seed)
    clusters = cluster(features, k, settings.rho, seed, backend=settings.backend)
    means = class_means(features, labels, classes)
    weights = cluster_weights(features, labels, classes, clusters, settings.weighting)
    centres = debiased_centres(means, weights, clusters, settings.centre)
    target = targeted(table, settings.target)
    centres[~target] = np.nan
    if isinstance(settings.pull, str):
        pull = (
            shrinkage_pulls(features, labels, means, centres)
            if settings.pull == "shrinkage"
            else _scheduled(table, settings.pull, settings.gamma0)
        )
    else:
        pull = np.full(classes, float(settings.pull))
    pull = np.where(target, pull, 0.0)
    centres[pull == 0] = np.nan
    targets = _moved(features, labels, centres, pull, means if settings.moves == "mean" else None)
    return Calibration(targets, centres, pull, settings.moves, means, weights, clusters)


def _scheduled(table: ClassTable, schedule: Schedule, gamma0: float) -> npt.NDArray[np.float64]:
    """The pulls (C,); how rare a background is has no say in those of the objects."""
    objects = table.objects
    pull = np.zeros(len(objects))
    pull[objects] = scheduled_pulls(table.imbalance_ratios[objects], schedule, gamma0)
    return pull


def _moved(
    features: Array,
    labels: npt.NDArray[np.int64],
    centres: Array,
    pull: npt.NDArray[np.float64],
    means: Array | None,
) -> Array:
    """Each feature pulled, or where there are means, each class shifted."""
    targets = features.copy()
    for c in np.flatnonzero(np.isfinite(centres).all(axis=1)):
        members = labels == c
        targets[members] += np.float32(pull[c]) * (centres[c] - (features[members] if means is None else means[c]))
    return targets
