"""Train and held-out sets that never share a source image or a spatial block."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import ConfigError

MIN_TRAIN = 2
"""Training samples that a class keeps before a source of it may be held out."""


def split_by_source(chips: Chips, share: float, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Split chips into a training and a held-out part, source by source.

    See :func:`split_sources`. Chips of neighbouring spatial blocks (see
    :func:`~torchgeo_debias.data.layers.chips_from_layer`) may still overlap by up to a window along the edge.

    Args:
        chips: What to split; ``chips.sources`` says what must stay together.
        share: Share of each class to hold out, ``0 < share < 1``.
        seed: Of the order in which sources are tried.

    Returns:
        Ascending indices of the training chips and of the held-out chips.

    Raises:
        ConfigError: If ``share`` is not between 0 and 1.
    """
    held = split_sources(chips.labels, chips.sources, share, seed)
    return np.flatnonzero(~held), np.flatnonzero(held)


def split_sources(
    labels: npt.NDArray[np.int64], sources: npt.NDArray[np.str_], share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose the samples to hold out, whole sources at a time, as near to ``share`` of every class as they allow.

    Iterative stratification (Sechidis et al., ECML PKDD 2011), here with groups: sources are tried in the order of
    their rarest class, ties in random order, and one is held out where that brings the held-out shares of its
    classes, each weighed alike, nearer to ``share``. No class is left with fewer than ``MIN_TRAIN`` training samples
    by holding out: classes that cannot spare a source stay whole in training. scikit-learn's group splitters give
    no such promise for rare classes and know only shares of the form 1/k.

    Args:
        labels: (N,) class ids.
        sources: (N,) source of each sample.
        share: Share of each class to hold out, ``0 < share < 1``.
        seed: Of the order in which sources are tried.

    Returns:
        (N,) bool, True where a sample is held out. Nothing is held out where no class can spare a source.

    Raises:
        ConfigError: If ``share`` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ConfigError(f"The share to hold out must lie between 0 and 1; received {share}.")
    classes, label = np.unique(labels, return_inverse=True)
    names, source = np.unique(sources, return_inverse=True)
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (source, label), 1)
    total = counts.sum(axis=0)
    target = share * total

    rarest = np.where(counts > 0, total, np.inf).min(axis=1, initial=np.inf)
    order = np.lexsort((np.random.default_rng(seed).permutation(len(names)), rarest))
    held = np.zeros(len(names), dtype=bool)
    sum_held = np.zeros(len(classes))

    def change(s: int) -> float:
        """Change of the summed distance to the target when source ``s`` is held out too; infinite if it may not."""
        has = counts[s] > 0
        after = sum_held[has] + counts[s, has]
        if (total[has] - after < MIN_TRAIN).any():
            return np.inf
        distance = np.abs(after - target[has]) - np.abs(sum_held[has] - target[has])
        return float((distance / total[has]).sum())

    for s in order:
        if change(s) < 0:
            held[s] = True
            sum_held += counts[s]
    if not held.any() and len(names):
        # Few large sources can each overshoot the share; one held out is still better than none.
        best = min(order, key=change)
        held[best] = np.isfinite(change(best))
    return held[source]
