"""How far the features of each class are pulled to its de-biased centre: by a schedule, or by what the data say."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.clustering import Array

Schedule = Literal["ratio", "sqrt", "linear"]
Target = Literal["tail", "middle+tail"]


def targeted(table: ClassTable, target: Target | int) -> npt.NDArray[np.bool_]:
    """Which classes (C,) are moved: those of the groups, or with fewer training samples than a number.

    A background class never is.
    """
    if isinstance(target, int):
        return np.array([n < target and g != "background" for n, g in zip(table.counts, table.groups, strict=True)])
    groups = ("tail",) if target == "tail" else ("middle", "tail")
    return np.array([group in groups for group in table.groups])


def scheduled_pulls(ratios: npt.NDArray[np.float64], schedule: Schedule, gamma0: float) -> npt.NDArray[np.float64]:
    """The pull of each class from its imbalance ratio ``IR`` alone; all schedules are 0 up to ``gamma0``.

    Args:
        ratios: (C,) of object classes, infinite for one without a sample: `linear` ends at the largest.
        schedule: ``ratio``: ``1 - gamma0 / IR`` (paper's Eq. 3, reconstructed); ``sqrt`` (ours):
            ``1 - sqrt(gamma0 / IR)``, gentler; ``linear`` (ours): a straight line in IR that ends where ``ratio`` does
            for the rarest class, so that fewer classes are pulled far.
        gamma0: Imbalance ratio from which the pull sets in.

    Returns:
        (C,) in 0..1.
    """
    share = np.minimum(1.0, gamma0 / ratios)
    if schedule == "ratio":
        return 1 - share
    if schedule == "sqrt":
        return 1 - np.sqrt(share)
    rarest = float(np.max(ratios, where=np.isfinite(ratios), initial=1.0))
    if rarest <= gamma0:
        return np.where(np.isinf(ratios), 1.0, 0.0)
    line = (ratios - gamma0) / (rarest - gamma0) * (1 - gamma0 / rarest)
    return np.clip(line, 0.0, 1.0)


def shrinkage_pulls(
    features: Array, labels: npt.NDArray[np.int64], means: Array, centres: Array
) -> npt.NDArray[np.float64]:
    """Empirical Bayes: a class is pulled as far as its mean is uncertain (Efron and Morris 1973).

    With true class means that lie around their de-biased centres with variance ``tau²``, and class means that lie
    around these with variance ``s² / n_c``, the expected squared error of ``mean + pull (centre - mean)`` is least at::

        pull_c = (s² / n_c) / (s² / n_c + tau²)

    whatever the form of the distributions. ``s²`` is the variance within classes, pooled; ``tau²`` is found by the
    method of moments for random effects of unequal precision (Paule and Mandel 1982): it is what makes the mean over
    the classes with a centre of ``|mean - centre|² / (s² / n_c + tau²)`` equal to 1, or 0 where that is below 1
    already. Squares and variances are summed over the dimensions.

    The centre of a class is taken as independent of its mean. A common class fills its clusters and lies near its
    centre whatever ``tau²`` is: give centres to rare classes alone.

    Args:
        features: (N, D).
        labels: (N,) class ids.
        means: (C, D), NaN for a class without a feature.
        centres: (C, D), NaN for a class that is not to move, or without a feature.

    Returns:
        (C,) in 0..1; 0 for a class without a centre, and for all where the features of no class differ.
    """
    counts = np.bincount(labels, minlength=len(means))
    present = counts > 0
    freedom = int(counts[present].sum() - present.sum())
    if freedom == 0:
        return np.zeros(len(means))
    within = sum(features[labels == c].var(axis=0, dtype=np.float64).sum() * counts[c] for c in np.flatnonzero(present))
    moving = np.isfinite(centres).all(axis=1)
    pull = np.zeros(len(means))
    if within == 0 or not moving.any():
        return pull
    noise = within / freedom / counts[moving]
    gaps = np.square(means[moving].astype(np.float64) - centres[moving]).sum(axis=1)

    def excess(between: float) -> float:
        return float((gaps / (noise + between)).mean()) - 1

    between = brentq(excess, 0.0, float(gaps.max())) if excess(0.0) > 0 else 0.0
    pull[moving] = noise / (noise + between)
    return pull
