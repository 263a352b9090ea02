"""The de-biased centre of each class: a mixture of cluster centres, weighted by where the class is found."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from torchgeo_debias.debias.clustering import Array, Clustering, squared_distances

Real = TypeVar("Real", bound=np.floating)
Weighting = Literal["counts", "class-balanced", "soft"]
Centre = Literal["clusters", "global"]


def class_means(features: npt.NDArray[Real], labels: npt.NDArray[np.int64], n_classes: int) -> npt.NDArray[Real]:
    """The mean (C, D) of each class's features (N, D), in their precision; NaN for a class without one."""
    means = np.full((n_classes, features.shape[1]), np.nan, dtype=features.dtype)
    for c in np.unique(labels):
        means[c] = features[labels == c].mean(axis=0)
    return means


def cluster_weights(
    features: Array, labels: npt.NDArray[np.int64], n_classes: int, clusters: Clustering, kind: Weighting = "counts"
) -> npt.NDArray[np.float64]:
    """The weight of each cluster in the centre of each class.

    ``counts``: ``n_ck / n_c``, the share of the class that lies in the cluster (paper's Eq. 2, reconstructed).

    ``class-balanced`` (ours): that share over how much the head classes swell the cluster, ``(n_k / N) / q_k`` with
    ``q_k`` the mean of ``n_ck / n_c`` over the classes: the share that the cluster would have if all classes were
    equally large. So a cluster full of a head class counts for less; of equally large classes it is ``counts``.

    ``soft``: the mean over the class's features of the weights of :func:`memberships`, so that a single feature draws
    on all clusters that it lies near to.

    Args:
        features: (N, D).
        labels: (N,) class ids.
        n_classes: C.
        clusters: Of these features.
        kind: See above.

    Returns:
        (C, K) float64, rows that sum to 1; zeros for a class without a feature.
    """
    k = len(clusters.centres)
    if kind == "soft":
        belong = memberships(features, clusters)
        found = np.stack([belong[labels == c].sum(axis=0) for c in range(n_classes)])
    else:
        found = np.bincount(labels * k + clusters.assignment, minlength=n_classes * k).reshape(n_classes, k)
    counts = np.bincount(labels, minlength=n_classes)[:, None]
    shares: npt.NDArray[np.float64] = found / np.maximum(counts, 1)
    if kind == "class-balanced":
        balanced = shares[counts[:, 0] > 0].mean(axis=0)
        shares = shares * balanced / np.maximum(found.sum(axis=0), 1)
        shares /= np.where(counts > 0, shares.sum(axis=1, keepdims=True), 1)
    return shares


def memberships(features: Array, clusters: Clustering) -> npt.NDArray[np.float64]:
    """How much each feature belongs to each cluster: a softmax of ``-d² / (2 h²)``, rows that sum to 1.

    These are the responsibilities of soft K-means (MacKay 2003, chapter 22), a mixture of equal round Gaussians. Its
    variance ``h²`` comes from the squared distances ``d²`` of all features from their own centres: half their variance
    over their mean. Where the coordinates vary independently and alike, that is their variance; where they hang
    together, it counts as many as there are in effect (Satterthwaite 1946), and hundreds of them do not make every
    membership 0 or 1.

    Args:
        features: (N, D).
        clusters: Of these features.

    Returns:
        (N, K) float64.
    """
    far = squared_distances(features, clusters.centres)
    own = far[np.arange(len(far)), clusters.assignment]
    width = own.var() / (2 * own.mean()) if own.mean() > 0 else 0.0
    if width == 0:  # as the width goes to nothing, so does what is left of all but the nearest
        return np.eye(far.shape[1])[clusters.assignment]
    belong: npt.NDArray[np.float64] = softmax(far / (-2 * width), axis=1)
    return belong


def debiased_centres(
    means: Array, weights: npt.NDArray[np.float64], clusters: Clustering, kind: Centre = "clusters"
) -> Array:
    """The de-biased centre of each class.

    Args:
        means: (C, D), NaN for a class without a feature.
        weights: (C, K) of :func:`cluster_weights`.
        clusters: The clusters.
        kind: ``clusters``: ``weights`` of the cluster centres; ``global``: the mean of all class means for every class
            (a control).

    Returns:
        (C, D) float32; NaN for a class without a feature.
    """
    present = np.isfinite(means).all(axis=1)
    centres = np.full_like(means, np.nan)
    if kind == "global":
        centres[present] = means[present].mean(axis=0)
    for c in np.flatnonzero(present) if kind == "clusters" else ():
        centres[c] = weights[c] @ clusters.centres  # alone, so that its last digit does not hang on the other classes
    return centres
