"""How much each class should count: even over the object classes, while background keeps its share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from torchgeo_debias.classes import ClassTable
from torchgeo_debias.debias.logits import logit_adjustment

Weights = npt.NDArray[np.float64]


def shares(table: ClassTable) -> Weights:
    """The share of each class that a balanced method aims at, shape (C,), the ``q`` of :func:`logit_adjustment`."""
    aim = table.priors * np.exp(-logit_adjustment(table, 1.0).astype(np.float64))
    whole: Weights = aim / aim.sum()
    return whole


def even_weights(labels: npt.NDArray[np.int64], table: ClassTable, total: float) -> Weights:
    """Weights (N,) by which every class counts for its share of ``total``.

    Args:
        labels: (N,) class ids, maybe with copies or drawn ones among them.
        table: The classes with the counts of the real samples.
        total: What the weights add up to: the number of real samples, so that the ridge weighs as much as it does
            for plain cross-entropy.
    """
    counts = np.bincount(labels, minlength=len(table.names))
    return total * (shares(table) / np.maximum(counts, 1))[labels]


def class_weights(raw: Weights, table: ClassTable) -> Weights:
    """Weights of the classes (C,) in proportion to ``raw``, with mean 1 over the samples; background weighs 1."""
    objects = table.objects
    counts = np.asarray(table.counts, dtype=np.float64)[objects]
    return np.where(objects, raw * counts.sum() / (raw[objects] @ counts), 1.0)


def missing(table: ClassTable) -> npt.NDArray[np.int64]:
    """Samples that each object class lacks to reach the largest one, shape (C,); none for background."""
    counts = np.asarray(table.counts, dtype=np.int64)
    objects = table.objects
    return np.where(objects, counts.max(where=objects, initial=0) - counts, 0)
