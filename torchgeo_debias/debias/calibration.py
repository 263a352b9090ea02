"""Stage 2 of debLoRA: de-biased centres and calibrated features.

Eq. 2-4 of the paper are reconstructed here, not verified against its full text; ``docs/method.md`` says which
statement rests on what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.clustering import Array, check_clustering, cluster
from torchgeo_debias.errors import ConfigError
from torchgeo_debias.fields import read_fields

Centre = Literal["clusters", "global"]
Target = Literal["tail", "middle+tail"]


@dataclass(frozen=True)
class DebiasSettings:
    """What happens to the features of rare classes.

    Attributes:
        n_clusters: K of K-means (paper: 32).
        rho: Balance factor, ``|C_k| >= N / (K rho)``; None for plain K-means (an input of the paper's algorithm; the
            inequality and the default are ours).
        centre: ``clusters``: weighted mean of the cluster centres, weights ``n_ck / n_c`` (paper's Eq. 2,
            reconstructed); ``global``: one class-balanced mean of all class means for every rare class (a control).
        pull: A number in 0..1, or None for ``1 - min(1, gamma0 / IR_c)`` (paper's Eq. 3, reconstructed); 0 is the
            control without calibration.
        gamma0: Imbalance ratio from which the pull sets in (reconstructed: 10).
        target: Groups whose features are moved (paper: tail).
    """

    n_clusters: int = 32
    rho: float | None = 2.0
    centre: Centre = "clusters"
    pull: float | None = None
    gamma0: float = 10.0
    target: Target = "tail"

    def __post_init__(self) -> None:
        if self.pull is not None and not 0 <= self.pull <= 1:
            raise ConfigError(f"The pull must lie between 0 and 1; received {self.pull}.")
        if self.centre not in get_args(Centre) or self.target not in get_args(Target):
            raise ConfigError(
                f"The centre must be one of {', '.join(get_args(Centre))} and the target one of "
                f"{', '.join(get_args(Target))}; received {self.centre!r} and {self.target!r}."
            )
        check_clustering(self.n_clusters, self.rho)
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


class Calibration(NamedTuple):
    """Result of :func:`calibrate`.

    Attributes:
        targets: (N, D), the features with those of rare classes moved.
        centres: (C, D), the de-biased centre of each class; NaN for classes that stay.
        pull: (C,), the share of the way each class was moved.
        assignment: (N,), the cluster of each feature.
    """

    targets: Array
    centres: Array
    pull: npt.NDArray[np.float64]
    assignment: npt.NDArray[np.int64]

    def moved(self, features: Array, labels: npt.NDArray[np.int64]) -> Array:
        """Features (M, D) of the classes ``labels`` (M,), those of rare classes moved as ``targets`` were."""
        return _moved(features, labels, self.centres, self.pull)


def pulls(table: ClassTable, settings: DebiasSettings) -> npt.NDArray[np.float64]:
    """The pull of each class, shape (C,), 0 where a class stays: ``1 - min(1, gamma0 / IR_c)`` or a constant."""
    groups = ("tail",) if settings.target == "tail" else ("middle", "tail")
    moved = np.array([group in groups for group in table.groups])
    if settings.pull is not None:
        return np.where(moved, settings.pull, 0.0)
    return np.where(moved, 1 - np.minimum(1.0, settings.gamma0 / table.imbalance_ratios), 0.0)


def calibrate(
    features: Array, labels: npt.NDArray[np.int64], table: ClassTable, settings: DebiasSettings, seed: int = 0
) -> Calibration:
    """Cluster all features and move those of rare classes towards their de-biased centres.

    ``z_cal = z + pull_c (mu_c - z)`` with ``mu_c = sum_k (n_ck / n_c) mu_k``.

    Args:
        features: (N, D) of all training chips.
        labels: (N,) class ids.
        table: Classes with the counts of these chips.
        settings: See :class:`DebiasSettings`.
        seed: Of the clustering.
    """
    clusters = cluster(features, settings.n_clusters, settings.rho, seed)
    pull = pulls(table, settings)
    centres = np.full((len(table.names), features.shape[1]), np.nan, dtype=np.float32)
    everywhere = np.mean([features[labels == c].mean(axis=0) for c in np.unique(labels)], axis=0)
    for c in np.flatnonzero(pull > 0):
        members = labels == c
        if not members.any():
            continue
        shares = np.bincount(clusters.assignment[members], minlength=len(clusters.centres)) / members.sum()
        centres[c] = shares @ clusters.centres if settings.centre == "clusters" else everywhere
    return Calibration(_moved(features, labels, centres, pull), centres, pull, clusters.assignment)


def _moved(features: Array, labels: npt.NDArray[np.int64], centres: Array, pull: npt.NDArray[np.float64]) -> Array:
    targets = features.copy()
    for c in np.flatnonzero(np.isfinite(centres).all(axis=1)):
        members = labels == c
        targets[members] += np.float32(pull[c]) * (centres[c] - features[members])
    return targets
