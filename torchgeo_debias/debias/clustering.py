"""K-means over all features, whatever their label, with a lower bound on the size of a cluster."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.metrics import pairwise_distances, silhouette_score

from torchgeo_debias.debias.assignment import assign_at_least
from torchgeo_debias.errors import ConfigError

Array = npt.NDArray[np.float32]
Backend = Literal["auto", "sklearn", "torch"]
LARGE = 2**27  # values, features times dimensions: half a GiB, where scikit-learn's K-means takes minutes
BLOCK = 2**24  # values that are widened to float64 at once
CHOICE_SAMPLE, CHOICE_LEAST = 2048, 16  # features on which K is chosen, and how many of them a cluster gets at least


class Clustering(NamedTuple):
    """Result of :func:`cluster`.

    Attributes:
        centres: (K, D) float32, the mean of each cluster's members (up to the tolerance of the backend).
        assignment: (N,) int64, the cluster of each feature.
    """

    centres: Array
    assignment: npt.NDArray[np.int64]


def cluster(
    features: Array,
    n_clusters: int,
    rho: float | None = 2.0,
    seed: int = 0,
    max_iter: int = 20,
    backend: Backend = "auto",
) -> Clustering:
    """Cluster features by K-means subject to ``|C_k| >= N / (K * rho)``, rounded down.

    The labels play no part: that is what lets a cluster hold an attribute that several classes share. The bound is
    our reconstruction of the paper's balance factor; without it (``rho=None``) this is the backend's K-means. With
    it, Lloyd's iterations go on from there with the constrained assignment of :func:`assign_at_least`
    (constrained K-means, Bradley, Bennett and Demiriz 2000).

    Up to 2^27 values (174,000 features of 768 dimensions) ``auto`` is scikit-learn's K-means, on every machine. Beyond,
    it is torch's where torch has a GPU, else scikit-learn's K-means by mini-batches (Sculley 2010); the constrained
    iterations then stop as soon as fewer than one feature in a thousand changes its cluster.

    Args:
        features: (N, D).
        n_clusters: K; at most N, fewer are used where there are fewer features.
        rho: Balance factor, at least 1 (1 asks for equal sizes); None for no bound.
        seed: Of the start, and of what is drawn.
        max_iter: Most constrained iterations.
        backend: ``auto``, ``sklearn`` or ``torch`` (:func:`~torchgeo_debias.debias.kmeans.kmeans`, at any size).

    Raises:
        ConfigError: If ``n_clusters`` or ``rho`` is below 1, or there is no such backend.
    """
    check_clustering(n_clusters, rho, backend)
    k = min(n_clusters, len(features))
    clusters = _unbounded(features, k, seed, backend)
    least = 0 if rho is None else int(len(features) / (k * rho))
    if np.bincount(clusters.assignment, minlength=k).min() >= least:
        return clusters
    return _bounded(features, clusters, least, max_iter)


def choose_n_clusters(features: Array, least: int = 2, seed: int = 0) -> int:
    """The K with the largest mean silhouette (Rousseeuw 1987) among ``least``, 2 ``least``, 4 ``least`` and so on.

    The silhouette did best of 30 indices in the comparison of Arbelaitz et al. (2013). It is taken on at most 2048
    features drawn at random, and the candidates end where these would be fewer than 16 a cluster; of equal ones the
    smallest wins. Sample and bounds are ours.

    Args:
        features: (N, D).
        least: The smallest candidate. :func:`~torchgeo_debias.debias.calibration.calibrate` takes the square root of
            the number of classes.
        seed: Of the sample and of K-means.
    """
    rng = np.random.default_rng(seed)
    count = min(len(features), CHOICE_SAMPLE)
    sample = features[np.sort(rng.choice(len(features), count, replace=False))]
    smallest = max(2, least)
    candidates = [smallest << i for i in range(int(math.log2(max(1.0, count / (CHOICE_LEAST * smallest)))) + 1)]
    if len(candidates) == 1 or np.ptp(sample, axis=0).max() == 0:
        return min(smallest, len(features))
    distances = pairwise_distances(sample.astype(np.float64))
    scores = []
    for k in candidates:
        assignment = KMeans(k, n_init=4, random_state=seed).fit(sample).labels_
        alone = len(np.unique(assignment)) < 2
        scores.append(-1.0 if alone else silhouette_score(distances, assignment, metric="precomputed"))
    return candidates[int(np.argmax(scores))]


def check_clustering(n_clusters: int, rho: float | None, backend: str = "auto") -> None:
    """Refuse what :func:`cluster` cannot do, before the work that leads to it."""
    if n_clusters < 1:
        raise ConfigError(f"The number of clusters must be at least 1; received {n_clusters}.")
    if rho is not None and rho < 1:
        raise ConfigError(f"The balance factor rho must be at least 1 (equal sizes); received {rho}.")
    if backend not in get_args(Backend):
        raise ConfigError(f"The backend must be one of {', '.join(get_args(Backend))}; received {backend!r}.")


def _unbounded(features: Array, k: int, seed: int, backend: Backend) -> Clustering:
    large = features.size > LARGE
    if backend == "torch" or (backend == "auto" and large):
        import torch

        from torchgeo_debias.debias.kmeans import kmeans

        gpu = torch.cuda.is_available()
        if backend == "torch" or gpu:
            return Clustering(*kmeans(features, k, seed, device="cuda" if gpu else "cpu")[:2])
    model = (
        MiniBatchKMeans(k, n_init=4, batch_size=4096, random_state=seed)
        if large
        else KMeans(k, n_init=4, random_state=seed)
    )
    model.fit(features)
    return Clustering(model.cluster_centers_.astype(np.float32), model.labels_.astype(np.int64))


def _bounded(features: Array, start: Clustering, least: int, max_iter: int) -> Clustering:
    centres, assignment = start
    settled = len(features) // 1000 if features.size > LARGE else 0
    for _ in range(max_iter):
        new = assign_at_least(squared_distances(features, centres), least)
        centres = np.stack([features[new == j].mean(axis=0) for j in range(len(centres))])
        changed = np.count_nonzero(new != assignment)
        assignment = new
        if changed <= settled:
            break
    return Clustering(centres.astype(np.float32), assignment)


def squared_distances(features: Array, centres: Array) -> npt.NDArray[np.float64]:
    """Of features (N, D) from centres (K, D): (N, K) in float64, as squares of large float32 values overflow."""
    step = max(1, BLOCK // features.shape[1])
    return np.concatenate(
        [
            pairwise_distances(
                features[first : first + step].astype(np.float64), centres, squared=True, metric="euclidean"
            )
            for first in range(0, len(features), step)
        ]
    )
