"""Train and held-out sets that never share a source image or a spatial block."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import shapely

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import ConfigError

MIN_TRAIN = 2
"""Training samples that a class keeps before a source of it may be held out."""

BLOCKS = (8, 4, 2, 1)
"""Sides of blocks of ground, in usual chip windows, that are tried in turn."""


def split_by_source(chips: Chips, share: float, seed: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Split chips into a training and a held-out part, source by source.

    See :func:`split_sources`. Chips of neighbouring spatial blocks (see
    :func:`~torchgeo_debias.data.layers.chips_from_layer`) may still overlap by up to a window along the edge; see
    :func:`split_apart`.

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


class Apart(NamedTuple):
    """A split whose parts share no pixel.

    Attributes:
        kept: Ascending indices of the training chips.
        held: Of the held-out chips.
        left_out: Of those in neither part.
        windows: Side of the blocks of ground that were held out, in usual chip windows; None where chips have no ground
            and whole sources were.
    """

    kept: npt.NDArray[np.intp]
    held: npt.NDArray[np.intp]
    left_out: npt.NDArray[np.intp]
    windows: int | None


def split_apart(chips: Chips, share: float, seed: int) -> Apart:
    """Split chips for a test that shares no pixel with the training.

    Whole blocks of ground are held out, see :func:`split_sources`; then held-out chips whose window reaches into that
    of a training chip are left out of both parts. Blocks are as wide as they can be, the fewer neighbours are parted:
    the widest of :data:`BLOCKS` by which the test has every class that can spare a chip or, where none does, most of
    them. Chips without ground are split as in :func:`split_by_source`.

    Args:
        chips: What to split.
        share: Share of each class to hold out, ``0 < share < 1``, before some are left out.
        seed: Of the order in which blocks are tried.

    Raises:
        ConfigError: If ``share`` is not between 0 and 1.
    """
    if chips.ground is None:
        kept, held = split_by_source(chips, share, seed)
        return Apart(kept, held, held[:0], None)
    spare = int((np.bincount(chips.labels) > MIN_TRAIN).sum())
    best, most = None, -1
    for windows in BLOCKS:
        held_out = split_sources(chips.labels, _blocks(chips.ground, windows), share, seed)
        kept, held = np.flatnonzero(~held_out), np.flatnonzero(held_out)
        near = _overlapping(chips.ground[held], chips.ground[kept])
        tested = len(np.unique(chips.labels[held[~near]]))
        if tested > most:
            best, most = Apart(kept, held[~near], held[near], windows), tested
        if tested >= spare:
            break
    return cast(Apart, best)


def _blocks(ground: npt.NDArray[np.float64], windows: int) -> npt.NDArray[np.str_]:
    """The block (N,) that holds the centre of each window."""
    side = windows * float(np.median(ground[:, 2:] - ground[:, :2]))
    places = np.floor((ground[:, :2] + ground[:, 2:]) / 2 / side).astype(np.int64)
    return np.asarray([f"{column}_{row}" for column, row in places.tolist()])


def _overlapping(some: npt.NDArray[np.float64], others: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of some bounds (N, 4) share more than an edge with one of the others, (N,)."""
    one, other = shapely.STRtree(np.asarray(shapely.box(*others.T))).query(shapely.box(*some.T))
    a, b = some[one], others[other]
    inside = (a[:, :2] < b[:, 2:]).all(axis=1) & (b[:, :2] < a[:, 2:]).all(axis=1)
    return np.isin(np.arange(len(some)), one[inside])


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
