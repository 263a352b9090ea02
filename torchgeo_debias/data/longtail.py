"""Seeded long-tail subsampling of a balanced set, for experiments with a known imbalance."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from torchgeo_debias.data.chips import Chips
from torchgeo_debias.errors import ConfigError

_log = logging.getLogger(__name__)


def long_tail_counts(n_max: int, classes: int, imbalance: float) -> npt.NDArray[np.int64]:
    """Class counts of an exponential long tail, by rank: ``n_r = n_max * IF ** (-r / (C - 1))``.

    Rounded half up and at least 1. The usual "-LT" curve (Cui et al., CVPR 2019).

    Args:
        n_max: Samples of the most common class (rank 0).
        classes: Number of classes C.
        imbalance: IF, the count of the most common class over that of the rarest, at least 1.

    Returns:
        (C,) int64, falling.

    Raises:
        ConfigError: If a value is out of range.
    """
    if n_max < 1 or classes < 1:
        raise ConfigError(f"A long tail needs at least one class and one sample; received {classes} and {n_max}.")
    if not imbalance >= 1:  # not a number either
        raise ConfigError(f"The imbalance is the largest class count over the smallest, at least 1; got {imbalance}.")
    rank = np.arange(classes) / max(classes - 1, 1)
    counts: npt.NDArray[np.int64] = np.floor(n_max * float(imbalance) ** -rank + 0.5).astype(np.int64)
    return np.maximum(counts, 1)


def long_tail(chips: Chips, imbalance: float, seed: int, n_max: int | None = None, min_count: int = 2) -> Chips:
    """Subsample chips to an exponential long tail.

    The seed decides which class gets which rank and which chips stay. A background class is left whole and has no
    rank; so are classes without any chip left out.

    Args:
        chips: A set that is about balanced.
        imbalance: See :func:`long_tail_counts`.
        seed: Of the class order and of the choice of chips.
        n_max: Chips of the most common class; by default the smallest class count, so that every class can give
            what the curve asks for.
        min_count: No class is thinned below this.

    Returns:
        The chips that stay, in their original order. A class with fewer chips than the curve asks for keeps all.

    Raises:
        ConfigError: If ``imbalance`` or ``n_max`` is out of range.
    """
    rng = np.random.default_rng(seed)
    background = chips.table.background
    present = np.asarray([c for c, n in enumerate(chips.table.counts) if n and c != background], dtype=np.int64)
    smallest = min((chips.table.counts[c] for c in present), default=1)
    asked = np.maximum(long_tail_counts(smallest if n_max is None else n_max, len(present), imbalance), min_count)

    keep = [np.flatnonzero(chips.labels == background)] if background is not None else []
    for c, n in zip(rng.permutation(present), asked, strict=True):
        own = np.flatnonzero(chips.labels == c)
        if len(own) < n:
            _log.warning("Class %s has %d chips; the long tail asks for %d.", chips.table.names[c], len(own), n)
        keep.append(rng.permutation(own)[:n])
    return chips.subset(np.sort(np.concatenate(keep)))
